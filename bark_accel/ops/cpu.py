"""The ops on a CPU: the compiled ones, float32 products and attention by what :mod:`float32_choice` says is fastest."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from . import native
from .float32_candidates import ATTENTION, PRODUCTS
from .float32_choice import choice
from .interface import CodecOps, Ops


def float32_linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, gelu: bool = False
) -> Tensor:
    """See :func:`bark_accel.ops.native.float32_linear`."""
    return PRODUCTS[choice().products](input, weight, bias, residual, gelu)


def float32_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
    """See :func:`bark_accel.ops.native.float32_attention`."""
    return ATTENTION[choice().attention](query, key, value, causal)


OPS = replace(
    Ops.of(native),
    float32_linear=float32_linear,
    float32_attention=float32_attention,
    pack_linear=native.pack_linear,
    packed_linear=native.packed_linear,
)

CODEC = CodecOps(native.float32_conv, native.float32_linear, native.lstm_layer, frames_at_once=64)


def codec_ops() -> CodecOps | None:
    """Return what EnCodec's decoder runs on where that is not torch."""
    return CODEC if choice().convolutions == "native" else None
