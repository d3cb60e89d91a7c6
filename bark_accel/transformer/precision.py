"""Smaller copies of a transformer's matrices: float16, bfloat16, or int8 with a scale for each group of 64 weights.

"w8a8" is int8, with activations rounded to int8 as well where many tokens are computed at once (prompts, fine stage).

What is gathered or tiny (embedding tables, LayerNorms, biases) stays the model's own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bark_accel.ops import checks as op_checks
from bark_accel.ops.checks import INT8_GROUP
from bark_accel.ops.cuda_streams import finish_stream
from bark_accel.ops.reference import expanded

from .fingerprint import Fingerprint
from .weights import Layer, Linear, TransformerWeights, map_tensors

WEIGHTS = ("same", "float16", "bfloat16", "int8", "w8a8")
INT8_WEIGHTS = ("int8", "w8a8")
# Rows that `quantize` converts to float32 at once; bounds its peak memory.
_ROWS = 64


def convert(weights: TransformerWeights, precision: str) -> TransformerWeights:
    """The weights with their matrices in another precision, one of `WEIGHTS`; `"same"` returns them as they are."""
    if precision == "same":
        return weights
    return _map_matrices(weights, _CHANGES[precision])


def compact(weights: TransformerWeights, precision: str) -> TransformerWeights:
    """The smallest weights of a precision other than `"same"`: tables too are 16 bits wide, and nothing is a view."""
    tables = torch.bfloat16 if precision == "bfloat16" else torch.float16
    converted = convert(weights, precision)
    return map_tensors(
        replace(
            converted,
            token_tables=tuple(table.to(tables) for table in weights.token_tables),
            positions=weights.positions.to(tables),
        ),
        torch.clone,
    )


def _map_matrices(weights: TransformerWeights, change: Callable[[Linear], Linear]) -> TransformerWeights:
    """The same weights with `change` done to every matrix, in the order of `_matrices`."""

    def changed(layer: Layer) -> Layer:
        qkv, attention_out = change(layer.qkv), change(layer.attention_out)
        mlp_in, mlp_out = change(layer.mlp_in), change(layer.mlp_out)
        return replace(layer, qkv=qkv, attention_out=attention_out, mlp_in=mlp_in, mlp_out=mlp_out)

    layers = tuple(changed(layer) for layer in weights.layers)
    return replace(weights, layers=layers, heads=tuple(change(head) for head in weights.heads))


def _matrices(weights: TransformerWeights) -> list[Linear]:
    layers = [m for layer in weights.layers for m in (layer.qkv, layer.attention_out, layer.mlp_in, layer.mlp_out)]
    return [*layers, *weights.heads]


def _caster(dtype: torch.dtype) -> Callable[[Linear], Linear]:
    return lambda linear: replace(linear, weight=linear.weight.to(dtype))


def quantize(linear: Linear) -> Linear:
    """Round to the nearest of 255 levels between -max and max of each group of 64 weights along a row."""
    weight = linear.weight
    int8 = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    groups = -(-weight.shape[1] // INT8_GROUP)
    scales = torch.empty(len(weight), groups, dtype=torch.float32, device=weight.device)
    # Some rows at a time: float32 copies of whole matrices would leave holes in the heap, as large as the model.
    for rows in zip(weight.split(_ROWS), int8.split(_ROWS), scales.split(_ROWS), strict=True):
        _quantize_rows(*rows)
    return Linear(int8, linear.bias, scales, wide=None if op_checks.on_host(weight) else expanded(int8, scales))


def _quantize_rows(weight: Tensor, int8: Tensor, scales: Tensor) -> None:
    """Write int8 [rows, in] and scales [rows, ceil(in / INT8_GROUP)] of weight [rows, in]."""
    padded = F.pad(weight.float(), (0, -weight.shape[1] % INT8_GROUP))
    groups = padded.unflatten(1, (-1, INT8_GROUP))
    scales.copy_(groups.abs().amax(2) / 127)
    levels = (groups / scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None]).round_()
    int8.copy_(levels.flatten(1)[:, : weight.shape[1]])


_CHANGES: dict[str, Callable[[Linear], Linear]] = {
    "float16": _caster(torch.float16),
    "bfloat16": _caster(torch.bfloat16),
    "int8": quantize,
    "w8a8": lambda linear: replace(quantize(linear), int8_blocks=True),
}


@dataclass
class ConvertedWeights:
    """Keeps copies in other precisions until the weights they were made from change.

    Their `Fingerprint` tells. A copied or unpickled store starts empty.
    """

    _kept: dict[str, tuple[Fingerprint, tuple[Linear, ...]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __getstate__(self) -> dict:
        return {}

    def __setstate__(self, state: dict) -> None:
        self.__init__()  # type: ignore[misc]

    def get(
        self,
        weights: TransformerWeights,
        precision: str,
        finish: Callable[[TransformerWeights], TransformerWeights] = lambda converted: converted,
    ) -> TransformerWeights:
        """`convert(weights, precision)`, made once, and `finish` done to copies: it changes matrices alone."""
        if precision == "same":
            return weights
        with self._lock:
            matrices = [matrix.weight for matrix in _matrices(weights)]
            before, kept = self._kept.get(precision, (None, ()))
            if before is None or not before.fits(matrices):
                now = Fingerprint(matrices)
                converted = convert(weights, precision)
                if converted.layers[0].qkv.weight is not weights.layers[0].qkv.weight:
                    converted = finish(converted)
                finish_stream(converted.device)
                kept = tuple(replace(matrix, bias=None) for matrix in _matrices(converted))
                self._kept[precision] = (now, kept)
        # Whatever is no matrix is the caller's: of a 16-bit model it is read anew at every call.
        again = iter(kept)
        return _map_matrices(weights, lambda linear: replace(next(again), bias=linear.bias))

    def kept(self) -> list[tuple[Linear, ...]]:
        """The copies that exist now, the matrices of each without their biases."""
        with self._lock:
            return [matrices for _, matrices in self._kept.values()]

    def clear(self) -> list[tuple[Linear, ...]]:
        """Give them up; they are returned once more."""
        kept = self.kept()
        with self._lock:
            self._kept.clear()
        return kept
