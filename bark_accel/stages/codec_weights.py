"""Weights of EnCodec's decoder as plain tensors, weight_norm folded in."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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

    weight [ceil(k / stride), in, stride * out]: taps in groups of one stride, the last group first (which belongs to
    the oldest input), zeros after the last tap; bias [out] or None.
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
