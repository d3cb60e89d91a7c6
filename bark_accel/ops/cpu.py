"""The ops on a CPU: the compiled ones, float32 products and attention by what :mod:`float32_choice` says is fastest."""

from __future__ import annotations

from torch import Tensor

from .float32_candidates import ATTENTION, PRODUCTS
from .float32_choice import choice
from .native import (
    codebook_embedding_sum,
    decode_step,
    fused_multinomial,
    fused_sample,
    int16_attention,
    int16_linear,
    static_cache_attention,
)

__all__ = [
    "codebook_embedding_sum",
    "decode_step",
    "float32_attention",
    "float32_linear",
    "fused_multinomial",
    "fused_sample",
    "int16_attention",
    "int16_linear",
    "static_cache_attention",
]


def float32_linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, gelu: bool = False
) -> Tensor:
    """See :func:`bark_accel.ops.native.float32_linear`."""
    return PRODUCTS[choice().products](input, weight, bias, residual, gelu)


def float32_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
    """See :func:`bark_accel.ops.native.float32_attention`."""
    return ATTENTION[choice().attention](query, key, value, causal)
