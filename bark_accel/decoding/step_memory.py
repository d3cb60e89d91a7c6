"""Memory that the steps of a CUDA graph read and write at fixed addresses, beside the model and the cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bark_accel.ops.graph_draw import NextStep
from bark_accel.transformer.kv_cache import KVCache

from .edits import LogitsEditor

# Tokens of one kernel, at most: a whole semantic stage (Bark's models have 1,024 positions).
MAX_RUN_TOKENS = 1024


@dataclass(frozen=True)
class StepMemory:
    """Device memory of the steps of one batch, all int64 but for `factors`.

    Attributes
    ----------
    ids : Tensor [B, 1]
        The token that the next step reads.
    drawn : Tensor [MAX_RUN_TOKENS, B]
        The tokens since `rewind`.
    counts : Tensor [B]
        How many those are.
    philox : Tensor [2]
        Seed and offset of the caller's generator, as they were at `rewind`.
    limit : Tensor [1]
        Tokens of a launch of many, at most.
    factors : Tensor [B, V + 1] float32
        Of the scores, where an option of the sampler has them.
    """

    ids: Tensor
    drawn: Tensor
    counts: Tensor
    philox: Tensor
    limit: Tensor
    factors: Tensor

    @classmethod
    def of(cls, rows: int, vocab_size: int, device: torch.device) -> StepMemory:
        """Allocate it for a batch of `rows`."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        # Born in inference mode it could not be written outside of it by a later call.
        with torch.inference_mode(False):
            factors = torch.ones(rows, vocab_size + 1, device=device, dtype=torch.float32)
            return cls(zeros(rows, 1), zeros(MAX_RUN_TOKENS, rows), zeros(rows), zeros(2), zeros(1), factors)

    @property
    def device(self) -> torch.device:
        return self.ids.device

    def rewind(self, last: Tensor, cache: KVCache, editor: LogitsEditor) -> None:
        """Make the next step the first of a block that follows `last` [B] at the cache's position."""
        self.ids.copy_(last[:, None])
        self.counts.zero_()
        if editor.factors is not None:
            self.factors.copy_(editor.factors)
        cache.truncate(cache.position)

    def next_step(self, cache: KVCache) -> NextStep:
        """Return the part that a drawn token moves on."""
        return NextStep(self.ids, self.drawn, self.counts, cache.length)


def move_on(step: NextStep, drawn: Tensor) -> None:
    """Do to `step` what `draw_next` does, for ids [B] that were drawn otherwise."""
    step.ids.copy_(drawn[:, None])
    step.drawn.index_copy_(0, step.counts[:1], drawn[None])
    step.counts.add_(1)
    step.length.add_(1)
