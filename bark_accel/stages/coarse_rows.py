"""A coarse batch whose rows may have voice presets of different lengths."""

from __future__ import annotations

import torch
from torch import Tensor

from .coarse import CoarseStage, CoarseState
from .spec import ENDED


class CoarseRows:
    """Runs a batch as groups of rows, each one a `CoarseState`, token by token side by side.

    A group's rows have histories of equal lengths, so that their windows do too.
    """

    def __init__(self, stage: CoarseStage, groups: list[tuple[list[int], CoarseState]], pad_token: int):
        self._stage = stage
        self._groups = groups
        self._pad_token = pad_token
        self._tokens: list[Tensor] = []

    def push(self, semantic_tokens: Tensor, *, final: bool) -> None:
        """Add semantic tokens [B, T]; ended rows are filled with the spec's `semantic_pad_token`."""
        for rows, state in self._groups:
            tokens = semantic_tokens if len(self._groups) == 1 else semantic_tokens[rows]
            ended = bool((tokens[:, -1:] == self._pad_token).all()) and tokens.shape[1] > 0
            self._stage.push(state, tokens, final=final or ended)

    @property
    def ready(self) -> bool:
        """Tell whether the tokens pushed so far settle the next token of every group that has one to come."""
        ready = [self._stage.ready(state) for _, state in self._groups]
        return any(ready) and all(r or state.final for r, (_, state) in zip(ready, self._groups, strict=True))

    @property
    def needed_semantic(self) -> int:
        """The semantic tokens below which no token can be settled, unless they end: fewer need not be pushed."""
        return min(self._stage.needed_semantic(state) for _, state in self._groups)

    def step(self) -> Tensor:
        """Generate the next token [B] int64 of every row; groups that have none left are padded."""
        if len(self._groups) == 1:
            return self._stage.step(self._groups[0][1])
        self._tokens.append(self._step_groups())
        return self._tokens[-1]

    def prompt_ids(self) -> Tensor | None:
        """The prompt [B, T] of the window that has just begun, for a batch of one group; else None."""
        _, state = self._groups[0]
        begun = len(self._groups) == 1 and len(state.window) == 1
        return self._stage.prompt_ids(state) if begun else None

    @property
    def window_ended(self) -> bool:
        """Tell whether that was the last token of a window, for a batch of one group."""
        _, state = self._groups[0]
        return len(state.window) == state.window_tokens

    def result(self) -> Tensor:
        """Coarse tokens [B, T] int64: the codebooks interleaved, ids offset as the model predicts them."""
        if len(self._groups) == 1:
            return self._groups[0][1].result()
        batch_size = sum(len(rows) for rows, _ in self._groups)
        return torch.stack(self._tokens, 1) if self._tokens else self._groups[0][1].coarse.new_empty(batch_size, 0)

    def _step_groups(self) -> Tensor:
        batch_size = sum(len(rows) for rows, _ in self._groups)
        tokens = self._groups[0][1].coarse.new_full((batch_size,), ENDED)
        for rows, state in self._groups:
            if self._stage.ready(state):
                tokens[rows] = self._stage.step(state)
        return tokens
