"""A copy of a lone row's cache in fewer bits, for drafts."""

from __future__ import annotations

import torch
from torch import Tensor

from bark_accel.ops.int8_entries import to_entries, to_vectors

from .kv_cache import KVCache
from .spec import TransformerSpec

# Of more entries, a layer at a time goes through a core's own cache.
_FEW_TOKENS = 64


class KVCopy:
    """A cache whose entries are those of another one, rounded to its own dtype.

    In int8 it is about a quarter of the bytes of a float32 cache, half of a float16 one's.
    """

    def __init__(self, spec: TransformerSpec, dtype: torch.dtype, device: torch.device):
        self._cache = KVCache.empty(spec, 1, dtype, device)
        self._source: KVCache | None = None

    def of(self, source: KVCache) -> KVCache:
        """Copy what has changed in `source`, of one row, since the last call; the caller may write behind it."""
        if source is not self._source:
            self._source, source.unchanged = source, 0
        places = slice(source.unchanged, source.position)
        if source.unchanged < source.position:
            _copy(source.keys[:, :, :, places], self._cache.keys[:, :, :, places])
            _copy(source.values[:, :, :, places], self._cache.values[:, :, :, places])
            source.unchanged = source.position
        self._cache.truncate(source.position)
        return self._cache


def _copy(source: Tensor, target: Tensor) -> None:
    """Copy entries [layers, 1, H, T, D] of one cache to those of another."""
    parts = [(source, target)] if source.shape[3] <= _FEW_TOKENS else zip(source, target, strict=True)
    for given, entries in parts:
        entries.copy_(to_entries(to_vectors(given), entries.dtype))
