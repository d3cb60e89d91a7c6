"""Tells whether tensors are what they were, without a copy of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Numbers that are sampled from a tensor.
_SAMPLES = 64
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Fingerprint:
    """Facts and numbers of tensors by which a change of them is noticed.

    A change is seen when a tensor was replaced, moved, cast or written to through torch, or when one of 64 numbers
    sampled from it differs (`.data` writes are invisible to torch).

    Parameters
    ----------
    summed : bool
        All numbers count, by the sum of their bits: it tells any change of one of them, and takes as long as reading.
    """

    def __init__(self, tensors: Sequence[Tensor], *, summed: bool = False):
        self._summed = summed
        self._facts, self._bits = facts_of(tensors), self._bits_of(tensors)

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Tell whether these are the tensors it was made of, and unchanged; waits once for the first one's device."""
        return facts_of(tensors) == self._facts and torch.equal(self._bits_of(tensors), self._bits)

    def _bits_of(self, tensors: Sequence[Tensor]) -> Tensor:
        """Some 64 numbers of each, as whole numbers, and the sums of all."""
        found = [*map(_sampled_bits, tensors), *(_summed_bits(tensor) for tensor in tensors if self._summed)]
        return torch.cat([bits.to(tensors[0].device) for bits in found])


def facts_of(tensors: Sequence[Tensor]) -> list[tuple[object, ...]]:
    """Facts that change when a tensor is replaced, moved, cast or written to through torch."""
    return [
        (type(t), t.data_ptr(), 0 if t.is_inference() else t._version, t.dtype, t.device, t.shape, t.stride())
        for t in tensors
    ]


def _sampled_bits(tensor: Tensor) -> Tensor:
    """Some 64 of a tensor's numbers, as whole numbers: NaN equals itself."""
    flat = tensor.detach().flatten()
    return flat[:: max(1, flat.numel() // _SAMPLES)].view(_BITS[flat.element_size()])


def _summed_bits(tensor: Tensor) -> Tensor:
    """The sum [1] of a tensor's numbers as whole ones of as many bits; it may wrap around."""
    bits = tensor.detach().view(_BITS[tensor.element_size()])
    return bits.sum(dtype=bits.dtype).view(1)
