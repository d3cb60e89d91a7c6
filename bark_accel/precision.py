"""Smaller copies of a transformer's matrices: float16, bfloat16, or int8 with a scale for each group of 64 weights.

What is gathered or tiny (embedding tables, LayerNorms, biases) stays the model's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F

from .weights import INT8_GROUP, Layer, Linear, TransformerWeights

WEIGHTS = ("same", "float16", "bfloat16", "int8")


def convert(weights: TransformerWeights, precision: str) -> TransformerWeights:
    """The weights with their matrices in another precision, one of `WEIGHTS`; `"same"` returns them as they are."""
    if precision == "same":
        return weights
    narrow = quantize if precision == "int8" else _caster(getattr(torch, precision))
    return replace(
        weights,
        layers=tuple(_convert_layer(layer, narrow) for layer in weights.layers),
        heads=tuple(narrow(head) for head in weights.heads),
    )


def _convert_layer(layer: Layer, narrow: Callable[[Linear], Linear]) -> Layer:
    names = ("qkv", "attention_out", "mlp_in", "mlp_out")
    return replace(layer, **{name: narrow(getattr(layer, name)) for name in names})


def _caster(dtype: torch.dtype) -> Callable[[Linear], Linear]:
    return lambda linear: replace(linear, weight=linear.weight.to(dtype))


def quantize(linear: Linear) -> Linear:
    """Round to the nearest of 255 levels between -max and max of each group of 64 weights along a row."""
    weight = linear.weight
    padded = F.pad(weight.float(), (0, -weight.shape[1] % INT8_GROUP))
    groups = padded.unflatten(1, (-1, INT8_GROUP))
    scales = groups.abs().amax(2) / 127
    levels = (groups / scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None]).round_()
    int8 = levels.flatten(1)[:, : weight.shape[1]].to(torch.int8).contiguous()
    return Linear(int8, linear.bias, scales)
