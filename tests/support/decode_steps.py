"""A decode step in float64, and what such steps leave behind."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bark_accel.ops import native
from bark_accel.ops.checks import INT8_GROUP

from .op_calls import call

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
WEIGHTS = [*FLOATS, torch.int8]


def product(x: Tensor, linear: list[Tensor | None]) -> Tensor:
    weight, bias, scales = linear
    matrix = weight.double()
    if scales is not None:
        matrix = matrix * scales.double().repeat_interleave(INT8_GROUP, dim=1)[:, : weight.shape[1]]
    return x @ matrix.T + (0 if bias is None else bias.double())


def layer_norm(x: Tensor, norm: list[Tensor | None], eps: float) -> Tensor:
    weight, bias = norm
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + eps).sqrt() * weight.double()
    return normed + (0 if bias is None else bias.double())


def reference(
    ids: Tensor,
    token_table: Tensor,
    positions: Tensor,
    weights: list[Tensor | None],
    eps: list[float],
    head: Tensor,
    head_scales: Tensor | None,
    heads: int,
    keys: Tensor,
    values: Tensor,
    length: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """fp64: logits and both caches as they are afterwards; NaN where a row is idle."""
    keys, values = keys.clone(), values.clone()
    logits = torch.full((*ids.shape, len(head)), math.nan, dtype=torch.float64)
    for b, start in enumerate(length.tolist()):
        if start >= 0:
            x = token_table[ids[b]].double() + positions[start : start + ids.shape[1]].double()
            x = layers(x, weights, eps, heads, keys[:, b], values[:, b], start)
            logits[b] = product(layer_norm(x, weights[-2:], eps[-1]), [head, None, head_scales])
    return logits, keys, values


def layers(
    x: Tensor, weights: list[Tensor | None], eps: list[float], heads: int, keys: Tensor, values: Tensor, start: int
) -> Tensor:
    """Hidden states [T, C] of one row behind all layers; its caches [layers, H, capacity, D] are written."""
    tokens = len(x)
    seen = slice(0, start + tokens)
    future = torch.ones(tokens, start + tokens, dtype=torch.bool).triu(start + 1)
    for i in range(len(keys)):
        layer = weights[16 * i : 16 * i + 16]
        qkv = product(layer_norm(x, layer[0:2], eps[2 * i]), layer[2:5]).view(tokens, 3, heads, -1)
        query, key, value = qkv.permute(1, 2, 0, 3)
        keys[i, :, start : start + tokens], values[i, :, start : start + tokens] = key, value
        scores = query @ keys[i, :, seen].double().transpose(1, 2) / math.sqrt(query.shape[-1])
        attended = scores.masked_fill(future, -math.inf).softmax(-1) @ values[i, :, seen].double()
        x = x + product(attended.transpose(0, 1).flatten(1), layer[5:8])
        inner = product(layer_norm(x, layer[8:10], eps[2 * i + 1]), layer[10:13])
        x = x + product(inner * (1 + torch.erf(inner / math.sqrt(2))) / 2, layer[13:16])
    return x


def results(inputs: tuple[Any, ...]) -> list[Tensor]:
    """Logits, keys and values of a step on copies of the caches."""
    *model, keys, values, length = inputs
    keys, values = keys.clone(), values.clone()
    return [call(native, "decode_step", *model, keys, values, length), keys, values]
