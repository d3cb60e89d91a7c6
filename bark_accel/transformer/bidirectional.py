"""The transformer of the fine stage: every frame attends to every frame.

Implements `BarkFineModel.forward` of Transformers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bark_accel.ops.backend import Ops

from .dynamo import Compiler
from .layers import PLAIN, add_linear, is_exact, linear, norm, output_rows
from .spec import TransformerSpec
from .weights import Layer, TransformerWeights


def bidirectional_forward(
    weights: TransformerWeights,
    spec: TransformerSpec,
    hidden: Tensor,
    ops: Ops,
    first_row: int = 0,
    last_row: int | None = None,
) -> Tensor:
    """Run every frame against every frame.

    Parameters
    ----------
    hidden : Tensor [B, T, C] float32
        Codebook plus position embeddings; overwritten.
    first_row, last_row : int
        Only these frames are returned, so the last layer skips the others.

    Returns
    -------
    Tensor [B, last_row - first_row, C] float32
        After the final LayerNorm.
    """
    for layer in weights.layers[:-1]:
        query, key, value = _heads(linear(norm(hidden, layer.norm_1), layer.qkv, ops), 3, spec)
        hidden = _attend_and_transform(hidden, query, key, value, layer, ops)
    layer, rows = weights.layers[-1], slice(first_row, last_row)
    normed, hidden = norm(hidden, layer.norm_1), hidden[:, rows].contiguous()
    (query,) = _heads(linear(normed[:, rows], output_rows(layer.qkv, 0, spec.width), ops), 1, spec)
    key, value = _heads(linear(normed, output_rows(layer.qkv, spec.width), ops), 2, spec)
    hidden = _attend_and_transform(hidden, query, key, value, layer, ops)
    return norm(hidden, weights.norm_final)


def compiled_bidirectional_forward(
    weights: TransformerWeights,
    spec: TransformerSpec,
    hidden: Tensor,
    compiler: Compiler,
    first_row: int = 0,
    last_row: int | None = None,
) -> Tensor:
    """`bidirectional_forward` by a compiled program, row after row; it computes every frame, whichever are returned."""
    name = f"fine window of {hidden.shape[1]} frames"
    rows = [compiler.run(name, window, weights, spec, row) for row in hidden.split(1)]
    return torch.cat(rows)[:, first_row:last_row]


def window(weights: TransformerWeights, spec: TransformerSpec, hidden: Tensor) -> Tensor:
    """Run every frame of hidden [B, T, C] against every frame, as a function of tensors in plain torch."""
    return bidirectional_forward(weights, spec, hidden.clone(), PLAIN)


def _heads(projected: Tensor, count: int, spec: TransformerSpec) -> tuple[Tensor, ...]:
    """Views [B, H, T, D] of `count` projections that stand side by side in [B, T, count * C]."""
    return projected.unflatten(2, (count, spec.num_heads, spec.head_size)).transpose(1, 3).unbind(2)


def _attend_and_transform(hidden: Tensor, query: Tensor, key: Tensor, value: Tensor, layer: Layer, ops: Ops) -> Tensor:
    """hidden [B, T, C], which may be overwritten, plus what follows the projections of a block."""
    attention = ops.float32_attention if is_exact(layer.qkv) else ops.int16_attention
    hidden = add_linear(hidden, attention(query.transpose(1, 2), key, value), layer.attention_out, ops)
    inner = linear(norm(hidden, layer.norm_2), layer.mlp_in, ops, gelu=True)
    return add_linear(hidden, inner, layer.mlp_out, ops)
