"""Tells whether tensors are what they were, without a copy of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Numbers that are sampled from a tensor.
_SAMPLES = 64
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Fingerprint:
    """Of tensors on one device.

    A change is seen when a tensor was replaced, moved, cast or written to through torch, or when one of 64 numbers
    sampled from it differs (`.data` writes are invisible to torch).
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self._facts, self._bits = facts_of(tensors), _sampled_bits(tensors)

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Tell whether these are the tensors it was made of, and unchanged; waits once for the device they are on."""
        return facts_of(tensors) == self._facts and torch.equal(_sampled_bits(tensors), self._bits)


def facts_of(tensors: Sequence[Tensor]) -> list[tuple[object, ...]]:
    """Facts that change when a tensor is replaced, moved, cast or written to through torch."""
    return [
        (type(t), t.data_ptr(), 0 if t.is_inference() else t._version, t.dtype, t.device, t.shape, t.stride())
        for t in tensors
    ]


def _sampled_bits(tensors: Sequence[Tensor]) -> Tensor:
    """Some 64 numbers of each, as whole numbers: NaN equals itself."""
    flat = [tensor.detach().flatten() for tensor in tensors]
    return torch.cat([some[:: max(1, some.numel() // _SAMPLES)].view(_BITS[some.element_size()]) for some in flat])
