"""Weights of a Bark model as plain tensors: views of the model's own parameters wherever no copy is needed.

Every field says its shape. C is the model width, V a vocabulary, P the number of positions, K codebooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Norm:
    """LayerNorm. weight [C] float32, bias [C] float32 or None."""

    weight: Tensor
    bias: Tensor | None
    eps: float


@dataclass(frozen=True)
class Linear:
    """weight [out, in] in the model's dtype, bias [out] or None.

    An int8 weight has scales [out, ceil(in / INT8_GROUP)] float32. `int8_blocks`: beside it, blocks of many tokens are
    rounded to int8 too. Laid out ahead (`packing`), weight is [panels, groups, rows, outputs of a panel] int32, scales
    None. `wide` [out, in] float16: on a GPU, the same numbers for products of many rows.
    """

    weight: Tensor
    bias: Tensor | None
    scales: Tensor | None = None
    int8_blocks: bool = False
    wide: Tensor | None = None


@dataclass(frozen=True)
class Layer:
    """One transformer block: qkv [3C, C], attention_out [C, C], mlp_in [4C, C], mlp_out [C, 4C]."""

    norm_1: Norm
    qkv: Linear
    attention_out: Linear
    norm_2: Norm
    mlp_in: Linear
    mlp_out: Linear


@dataclass(frozen=True)
class TransformerWeights:
    """token_tables: one [V, C] (causal models) or K of them (fine); positions [P, C]; heads [V_out, C] without bias."""

    token_tables: tuple[Tensor, ...]
    positions: Tensor
    layers: tuple[Layer, ...]
    norm_final: Norm
    heads: tuple[Linear, ...]

    @property
    def device(self):
        return self.positions.device

    @property
    def dtype(self):
        """The model's own dtype."""
        return self.positions.dtype

    @property
    def cache_dtype(self):
        """Dtype of cached keys and values: the products' dtype; float16 beside int8 weights."""
        qkv = self.layers[0].qkv.weight
        # Heads only where matrices are laid out ahead: a compiled prompt would be compiled again for other heads.
        dtype = self.heads[0].weight.dtype if qkv.dtype == torch.int32 else qkv.dtype
        return dtype if dtype.is_floating_point else torch.float16


T = TypeVar("T")


def map_tensors(weights: T, function: Callable[[Tensor], Tensor]) -> T:
    """The same with every tensor replaced."""
    if isinstance(weights, Tensor):
        return function(weights)  # type: ignore[return-value]
    if isinstance(weights, tuple):
        return tuple(map_tensors(item, function) for item in weights)  # type: ignore[return-value]
    if is_dataclass(weights) and not isinstance(weights, type):
        return replace(weights, **{f.name: map_tensors(getattr(weights, f.name), function) for f in fields(weights)})
    return weights


def tensors_of(weights: object) -> Iterator[Tensor]:
    """Every tensor in one of the classes above."""
    if isinstance(weights, Tensor):
        yield weights
    elif isinstance(weights, tuple):
        for item in weights:
            yield from tensors_of(item)
    elif is_dataclass(weights):
        for field in fields(weights):
            yield from tensors_of(getattr(weights, field.name))
