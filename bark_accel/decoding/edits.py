"""Edits of the logits before Bark's own rules: ids biased or banned, ids that were there before made less likely."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogitsEdits:
    """Resolved options of one stage, in the order in which they are applied.

    `bias` pairs ids with what is added to their logit, -inf for a banned id; `repetition_penalty` divides the positive
    logits of ids that the prompt or a token before has, and multiplies the negative ones; `not_first` are banned as
    first token.
    """

    bias: tuple[tuple[int, float], ...] = ()
    repetition_penalty: float = 1.0
    not_first: tuple[int, ...] = ()


class LogitsEditor:
    """Applies `LogitsEdits` to one generation after the other."""

    def __init__(self, edits: LogitsEdits, vocab_size: int):
        self._edits = edits
        self._vocab_size = vocab_size
        self._first = True
        self._bias: Tensor | None = None
        self.factors: Tensor | None = None
        """[B, V] float32, the penalty of the ids that each row has had and 1 for others; None where there is none."""

    @property
    def idle(self) -> bool:
        return self._edits == LogitsEdits()

    def begin(self, prompt: Tensor) -> None:
        """Begin a generation after a prompt [B, T] int, of which ids beyond the vocabulary do not matter."""
        self._first = True
        if self._edits.repetition_penalty != 1.0:
            end = self._vocab_size
            self.factors = torch.ones(len(prompt), end + 1, dtype=torch.float32, device=prompt.device)
            self.note(torch.where((prompt >= 0) & (prompt < end), prompt, end).long(), self.factors)

    def edit(self, logits: Tensor, ids: slice, factors: Tensor | None) -> Tensor:
        """Return the logits [B, ids] of the next token, edited by the given factors."""
        if self._edits.bias:
            logits = logits + self._bias_on(logits.device)[ids]
        if factors is not None:
            factors = factors[:, ids]
            # Of the two, the penalty makes it the one that the sign asks for; by 1, it is the logit itself.
            choose = torch.minimum if self._edits.repetition_penalty > 1 else torch.maximum
            logits = choose(logits * factors, logits / factors)
        if self._first and self._edits.not_first:
            banned = self._vector(((i, -torch.inf) for i in self._edits.not_first), logits.device)
            logits = logits + banned[ids]
        self._first = False
        return logits

    def note(self, tokens: Tensor, factors: Tensor | None) -> None:
        """Remember tokens [B, T] in the factors."""
        if factors is not None:
            factors.scatter_(1, tokens.to(factors.device), self._edits.repetition_penalty)

    @contextmanager
    def rewound(self) -> Iterator[None]:
        """Forget afterwards what was seen inside."""
        factors = self.factors
        self.factors = None if factors is None else factors.clone()
        try:
            yield
        finally:
            self.factors = factors

    def _bias_on(self, device: torch.device) -> Tensor:
        if self._bias is None or self._bias.device != device:
            self._bias = self._vector(self._edits.bias, device)
        return self._bias

    def _vector(self, pairs: Iterable[tuple[int, float]], device: torch.device) -> Tensor:
        vector = torch.zeros(self._vocab_size, dtype=torch.float32, device="cpu")
        for token, value in pairs:
            if 0 <= token < self._vocab_size:
                vector[token] = value
        return vector.to(device)
