"""The first codebooks -> all codebooks, six bidirectional passes a window."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import Ops
from ..bidirectional import bidirectional_forward
from ..layers import linear, output_rows
from ..spec import FineSpec, TransformerSpec
from ..weights import TransformerWeights


class FineStage:
    """The windows of `BarkFineModel.generate`."""

    def __init__(self, weights: TransformerWeights, transformer: TransformerSpec, spec: FineSpec, ops: Ops):
        self._weights = weights
        self._transformer = transformer
        self._spec = spec
        self._ops = ops

    def run(self, coarse_tokens: Tensor, history: Tensor | None, temperature: float | None) -> Tensor:
        """Fill in the remaining codebooks.

        Parameters
        ----------
        coarse_tokens : Tensor [B, num_coarse_codebooks * T] int64
            As the coarse stage returns them.
        history : Tensor [num_codebooks, T'] int, optional
            `fine_prompt` of a voice preset.
        temperature : float, optional
            None or 1.0 takes the most likely code, anything else draws one (as in Transformers).

        Returns
        -------
        Tensor [B, num_codebooks, T] int64
        """
        spec = self._spec
        codes = coarse_tokens.reshape(coarse_tokens.shape[0], -1, spec.num_coarse_codebooks)
        codes = torch.remainder(codes - spec.semantic_vocab_size, spec.codebook_size)
        frames = codes.shape[1]
        codes = F.pad(codes, (0, spec.num_codebooks - spec.num_coarse_codebooks), value=spec.codebook_size)
        history_frames = 0
        if history is not None:
            past = history.to(codes).T[-spec.max_history_frames :]
            history_frames = past.shape[0]
            codes = torch.cat([past.expand(codes.shape[0], -1, -1), codes], dim=1)
        # The model is not causal: short inputs are padded to the full window, and the padding is predicted too.
        codes = F.pad(codes, (0, 0, 0, max(0, spec.max_input_frames - codes.shape[1])), value=spec.codebook_size)
        for start, fill_start in self._windows(frames, history_frames, codes.shape[1]):
            window = codes[:, start : start + spec.max_input_frames]
            self._fill(window, fill_start - start, temperature)
        return codes.transpose(1, 2)[:, :, history_frames : history_frames + frames]

    def _windows(self, frames: int, history_frames: int, total_frames: int) -> list[tuple[int, int]]:
        """(first frame of the window, first frame it writes) of each window."""
        spec = self._spec
        hop = spec.max_history_frames
        count = max(0, math.ceil((frames - (spec.max_input_frames - history_frames)) / hop)) + 1
        last = total_frames - spec.max_input_frames
        return [(min(i * hop, last), min(history_frames + i * hop, total_frames - hop)) for i in range(count)]

    def _fill(self, window: Tensor, first_row: int, temperature: float | None) -> None:
        """Predict codebook after codebook of `window` [B, T, K] in place, from frame `first_row` on."""
        spec, weights = self._spec, self._weights
        codebooks_without_head = len(weights.token_tables) - len(weights.heads)
        for codebook in range(spec.num_coarse_codebooks, spec.num_codebooks):
            hidden = self._ops.codebook_embedding_sum(window, weights.token_tables[: codebook + 1], weights.positions)
            hidden = bidirectional_forward(weights, self._transformer, hidden, self._ops, first_row)
            head = output_rows(weights.heads[codebook - codebooks_without_head], 0, spec.codebook_size)
            logits = linear(hidden, head, self._ops).flatten(0, 1)
            window[:, first_row:, codebook] = self._draw(logits, temperature).view(window.shape[0], -1)

    def _draw(self, logits: Tensor, temperature: float | None) -> Tensor:
        noise = None
        if temperature is not None and temperature != 1.0:
            # In the dtype of the probabilities, as torch.multinomial draws it.
            noise = torch.empty_like(logits).exponential_().float()
        return self._ops.fused_sample(
            logits,
            noise,
            first_id=0,
            allowed_begin=0,
            allowed_end=logits.shape[1],
            temperature=1.0 if temperature is None else temperature,
            renormalize=False,
        )
