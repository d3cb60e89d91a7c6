"""The first codebooks -> all codebooks, six bidirectional passes a window."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..backend import Ops
from ..bidirectional import bidirectional_forward
from ..layers import linear, output_rows
from ..spec import FineSpec, TransformerSpec
from ..weights import TransformerWeights


@dataclass
class FineSampling:
    """How codes are chosen.

    `temperature` None or 1.0 takes the most likely code, anything else draws one (as in Transformers), from
    `generator` or, without one, from the device's own. `before_pass` is called before each pass over a window.
    """

    temperature: float | None
    generator: Generator | None = None
    before_pass: Callable[[], None] | None = None


@dataclass
class FineState:
    """One batch of utterances of known length.

    `codes` [B, T, K] holds the history, then `frames` frames of which `known_frames` have their coarse codes, then
    padding. `windows`: (first frame, first frame written) of those to come; `settled_frames` are final.
    """

    codes: Tensor
    history_frames: int
    frames: int
    sampling: FineSampling
    windows: list[tuple[int, int]] = field(default_factory=list)
    known_frames: int = 0
    settled_frames: int = 0

    def result(self, start: int = 0, end: int | None = None) -> Tensor:
        """Codes [B, num_codebooks, end - start] of the utterance's frames."""
        utterance = self.codes[:, self.history_frames : self.history_frames + self.frames]
        return utterance[:, start:end].transpose(1, 2)


class FineStage:
    """The windows of `BarkFineModel.generate`."""

    def __init__(self, weights: TransformerWeights, transformer: TransformerSpec, spec: FineSpec, ops: Ops):
        self._weights = weights
        self._transformer = transformer
        self._spec = spec
        self._ops = ops

    @property
    def max_history_frames(self) -> int:
        return self._spec.max_history_frames

    def run(self, coarse_tokens: Tensor, history: Tensor | None, sampling: FineSampling) -> Tensor:
        """Fill in the remaining codebooks.

        Parameters
        ----------
        coarse_tokens : Tensor [B, num_coarse_codebooks * T] int64
            As the coarse stage returns them.
        history : Tensor [num_codebooks, T'] or [B, num_codebooks, T'] int, optional
            What was said before: `fine_prompt` of a voice preset, or earlier codes.

        Returns
        -------
        Tensor [B, num_codebooks, T] int64
        """
        codes = coarse_codes(self._spec, coarse_tokens)
        state = self.start(codes.shape[0], codes.shape[1], history, sampling)
        self.push(state, codes)
        while self.ready(state):
            self.step(state)
        return state.result()

    def start(self, batch_size: int, frames: int, history: Tensor | None, sampling: FineSampling) -> FineState:
        """Begin utterances of `frames` frames in all."""
        spec = self._spec
        past = torch.empty(0, spec.num_codebooks, dtype=torch.int64, device=self._weights.device)
        if history is not None:
            past = history.to(past).transpose(-1, -2)[..., -spec.max_history_frames :, :]
        past = past.expand(batch_size, -1, -1)
        history_frames = past.shape[1]
        # The model is not causal: short inputs are padded to the full window, and the padding is predicted too.
        padded_frames = max(spec.max_input_frames, history_frames + frames)
        codes = F.pad(past, (0, 0, 0, padded_frames - history_frames), value=spec.codebook_size)
        return FineState(codes, history_frames, frames, sampling, self._windows(frames, history_frames, padded_frames))

    def push(self, state: FineState, codes: Tensor) -> None:
        """Add coarse codes [B, T, num_coarse_codebooks] of the next frames."""
        begin = state.history_frames + state.known_frames
        state.codes[:, begin : begin + codes.shape[1], : codes.shape[2]] = codes
        state.known_frames += codes.shape[1]

    def ready(self, state: FineState) -> bool:
        """Whether the next window has all the frames it reads."""
        if not state.windows:
            return False
        end = state.windows[0][0] + self._spec.max_input_frames - state.history_frames
        return state.known_frames >= min(end, state.frames)

    def step(self, state: FineState) -> None:
        """Predict the next window. Frames that no later window writes are settled."""
        start, fill_start = state.windows.pop(0)
        window = state.codes[:, start : start + self._spec.max_input_frames]
        self._fill(window, fill_start - start, state.sampling)
        state.settled_frames = max(0, state.windows[0][1] - state.history_frames) if state.windows else state.frames

    def _windows(self, frames: int, history_frames: int, total_frames: int) -> list[tuple[int, int]]:
        """(first frame of the window, first frame it writes) of each window."""
        spec = self._spec
        hop = spec.max_history_frames
        count = max(0, math.ceil((frames - (spec.max_input_frames - history_frames)) / hop)) + 1
        last = total_frames - spec.max_input_frames
        return [(min(i * hop, last), min(history_frames + i * hop, total_frames - hop)) for i in range(count)]

    def _fill(self, window: Tensor, first_row: int, sampling: FineSampling) -> None:
        """Predict codebook after codebook of `window` [B, T, K] in place, from frame `first_row` on."""
        spec, weights = self._spec, self._weights
        codebooks_without_head = len(weights.token_tables) - len(weights.heads)
        for codebook in range(spec.num_coarse_codebooks, spec.num_codebooks):
            if sampling.before_pass is not None:
                sampling.before_pass()
            hidden = self._ops.codebook_embedding_sum(window, weights.token_tables[: codebook + 1], weights.positions)
            hidden = bidirectional_forward(weights, self._transformer, hidden, self._ops, first_row)
            head = output_rows(weights.heads[codebook - codebooks_without_head], 0, spec.codebook_size)
            logits = linear(hidden, head, self._ops).flatten(0, 1)
            window[:, first_row:, codebook] = self._draw(logits, sampling).view(window.shape[0], -1)

    def _draw(self, logits: Tensor, sampling: FineSampling) -> Tensor:
        ids, temperature = logits.shape[1], sampling.temperature
        if temperature is None or temperature == 1.0:
            return self._ops.fused_sample(logits, None, first_id=0, allowed_begin=0, allowed_end=ids)
        return self._ops.fused_multinomial(
            logits,
            sampling.generator,
            ids,
            first_id=0,
            allowed_begin=0,
            allowed_end=ids,
            temperature=temperature,
            renormalize=False,
        )


def coarse_codes(spec: FineSpec, tokens: Tensor) -> Tensor:
    """Codes [B, T, num_coarse_codebooks] in 0..codebook_size - 1 of coarse tokens [B, num_coarse_codebooks * T]."""
    frames = tokens.reshape(tokens.shape[0], -1, spec.num_coarse_codebooks)
    return torch.remainder(frames - spec.semantic_vocab_size, spec.codebook_size)
