"""Drops finished rows of a batch from the KV cache, so that they cost no further model work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bark_accel.transformer.kv_cache import KVCache


class ActiveRows:
    """Which row of a batch each slot of the cache belongs to. All of them at first; an ended row gives up its slot."""

    def __init__(self, cache: KVCache, rows: int):
        self._cache = cache
        self._rows = list(range(rows))
        self._slots: Tensor | None = None
        self._row_of_slot: Tensor | None = None

    def keep(self, active: Sequence[bool]) -> None:
        """Drop the rows that are not `active` (by row, at least one is) from the cache."""
        ended = [slot for slot, row in enumerate(self._rows) if not active[row]]
        if not ended:
            return
        # From the last on, so that the slot that moves in is an active row's.
        for slot in reversed(ended):
            self._cache.drop_row(slot)
            last = self._rows.pop()
            if slot < len(self._rows):
                self._rows[slot] = last
        slots = dict(zip(self._rows, range(len(self._rows)), strict=True))
        device = self._cache.length.device
        self._row_of_slot = torch.tensor(self._rows, dtype=torch.int64, device=device)
        slot_of_row = [slots.get(row, 0) for row in range(len(active))]
        self._slots = torch.tensor(slot_of_row, dtype=torch.int64, device=device)

    def select(self, values: Tensor) -> Tensor:
        """Select from `values` [B, ...] the rows that the model still runs: [slots, ...]."""
        return values if self._row_of_slot is None else values.index_select(0, self._row_of_slot)

    def expand(self, scores: Tensor) -> Tensor:
        """Scores [B, V] of those [slots, V] that the model gave; ended rows get another row's, to be drawn in vain.

        So the noise is drawn for all rows, as Transformers does.
        """
        return scores if self._slots is None else scores.index_select(0, self._slots)
