"""Weights of a Bark model as plain tensors: views of the model's own parameters wherever no copy is needed.

Every field says its shape. C is the model width, V a vocabulary, P the number of positions, K codebooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

# Weights along a row of an int8 matrix that share one scale.
INT8_GROUP = 64


@dataclass(frozen=True)
class Norm:
    """LayerNorm. weight [C] float32, bias [C] float32 or None."""

    weight: Tensor
    bias: Tensor | None
    eps: float


@dataclass(frozen=True)
class Linear:
    """weight [out, in] in the model's dtype, bias [out] or None.

    An int8 weight has scales [out, ceil(in / INT8_GROUP)] float32.
    """

    weight: Tensor
    bias: Tensor | None
    scales: Tensor | None = None


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
        """Of keys and values: the products' dtype; float16 beside int8 weights."""
        dtype = self.layers[0].qkv.weight.dtype
        return dtype if dtype.is_floating_point else torch.float16


@dataclass(frozen=True)
class Conv:
    """Causal Conv1d, weight_norm folded in; pads (k - 1) * dilation on the left.

    weight [k, in, out], one matrix a tap; bias [out] or None.
    """

    weight: Tensor
    bias: Tensor | None
    dilation: int
    pad_mode: str


@dataclass(frozen=True)
class ConvTranspose:
    """Causal ConvTranspose1d with weight_norm folded in.

    weight [ceil(k / stride), in, stride * out]: taps in groups of one stride, zeros after the last; bias [out] or None.
    `trim_left` and `trim_right` samples are cut from its output (k - stride in all).
    """

    weight: Tensor
    bias: Tensor | None
    stride: int
    kernel_size: int
    trim_left: int
    trim_right: int


@dataclass(frozen=True)
class ResidualBlock:
    """ELU, conv, ELU, conv, added to the shortcut (a conv, or None for the identity)."""

    conv_1: Conv
    conv_2: Conv
    shortcut: Conv | None


@dataclass(frozen=True)
class Lstm:
    """`flat` is torch.nn.LSTM's flat weight list; `size` its hidden size; the input is added to the output."""

    flat: tuple[Tensor, ...]
    num_layers: int
    size: int


@dataclass(frozen=True)
class Upsampling:
    """ELU, transposed conv, residual blocks."""

    conv: ConvTranspose
    blocks: tuple[ResidualBlock, ...]


@dataclass(frozen=True)
class CodecWeights:
    """EnCodec's quantiser tables (K of [V, hidden], in the model's dtype) and its SEANet decoder, in float32."""

    codebooks: tuple[Tensor, ...]
    conv_in: Conv
    lstm: Lstm
    upsampling: tuple[Upsampling, ...]
    conv_out: Conv


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
