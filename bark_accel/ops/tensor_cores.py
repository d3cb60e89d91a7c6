"""Blocks of tokens in 16 bits on a GPU: what a product or attention gives stays 16 bits wide, for the next one.

Between products nothing is converted but what comes out of a LayerNorm; sums inside are float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import attend, expanded


def int16_linear(
    input: Tensor, weight: Tensor, scales: Tensor | None = None, bias: Tensor | None = None, gelu: bool = False
) -> Tensor:
    """Multiply input [M, K] of any float dtype by weight [N, K]; [M, N] in the weight's 16 bits, float16 for int8."""
    if scales is not None:
        weight = expanded(weight, scales)
    product = F.linear(input.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype))
    return F.gelu(product) if gelu else product


def int8_linear(
    input: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None = None, gelu: bool = False
) -> Tensor:
    """Do as `int16_linear`: rounding activations to 8 bits saves nothing here."""
    return int16_linear(input, weight, scales, bias, gelu)


def int16_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
    """Attend with query [B, T, H, D] to key and value [B, H, S, D]; [B, T, H * D], all in 16 bits."""
    dtype = torch.float16 if key.dtype == torch.float32 else key.dtype
    query, key, value = (t.to(dtype) for t in (query.transpose(1, 2), key, value))
    return attend(query, key, value, causal).transpose(1, 2).flatten(2)
