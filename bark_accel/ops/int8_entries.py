"""Entries of an int8 key-value cache, in plain torch: D numbers of 8 bits, and the 4 bytes of a float32 behind them.

The float32 is what the numbers are multiplied with. So an entry is one row of the cache, which is copied, reordered and
forgotten as a whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCALE_BYTES = 4  # kCacheScaleBytes of csrc/kernels/params.h
_MOST = 127


def entry_size(head_size: int, dtype: torch.dtype) -> int:
    """Return the numbers of an entry of a cache: `head_size`, and an int8 cache's scale."""
    return head_size + (SCALE_BYTES if dtype == torch.int8 else 0)


def to_entries(vectors: Tensor, dtype: torch.dtype) -> Tensor:
    """Return vectors [..., D] as a cache of `dtype` holds them: [..., D], or [..., D + 4] int8.

    int8 rounds to the nearest of 255 levels between -max and max of each vector. A vector with a NaN or an infinite
    number is read as NaN.
    """
    if dtype != torch.int8:
        return vectors.to(dtype)
    vectors = vectors.float()
    largest = vectors.abs().amax(-1, keepdim=True)
    factor = _MOST / largest
    whole = (vectors * factor).round_().masked_fill_(~(factor.isfinite() & (factor > 0)), 0.0)
    scales = (largest / _MOST).contiguous().view(torch.int8)
    return torch.cat([whole.to(torch.int8), scales], -1)


def to_vectors(entries: Tensor) -> Tensor:
    """Return the vectors [..., D] that entries of a cache mean: float32 of int8 ones, else as they are."""
    if entries.dtype != torch.int8:
        return entries
    # A copy in any case: float32 cannot be read at any byte.
    scales = entries[..., -SCALE_BYTES:].clone(memory_format=torch.contiguous_format).view(torch.float32)
    return entries[..., :-SCALE_BYTES].float() * scales
