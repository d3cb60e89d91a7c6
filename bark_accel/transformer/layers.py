"""Parts of a transformer block: LayerNorm, and matrix products in the precision that the weights ask for.

The residual stream, LayerNorm statistics and softmax are float32 whatever the dtype of the weights.
"""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from bark_accel.ops import reference
from bark_accel.ops.backend import Ops

from .weights import Linear, Norm

# Plain torch, for functions that other compilers than ours are given.
PLAIN = Ops.of(reference)


def norm(hidden: Tensor, norm: Norm) -> Tensor:
    return F.layer_norm(hidden, norm.weight.shape, norm.weight, norm.bias, norm.eps)


def is_exact(linear: Linear) -> bool:
    """Tell whether the layer's products are float32, as Transformers' are: smaller weights take the 16-bit ops."""
    return linear.weight.is_floating_point() and linear.weight.itemsize >= 4


def is_packed(linear: Linear) -> bool:
    """Tell whether the weight is laid out ahead, as `packing` does."""
    return linear.weight.dim() == 4


def linear(hidden: Tensor, linear: Linear, ops: Ops, *, gelu: bool = False) -> Tensor:
    """Product [..., out] of hidden [..., in], with an exact GELU after it if asked for.

    Both are float32, but on a GPU smaller weights give, and take, 16 bits.
    """
    rows = hidden.reshape(-1, hidden.shape[-1])
    if is_exact(linear):
        product = ops.float32_linear(rows, linear.weight, linear.bias, gelu=gelu)
    else:
        bias = None if linear.bias is None else linear.bias.float()
        if is_packed(linear):
            assert ops.packed_linear is not None
            product = ops.packed_linear(rows, linear.weight, bias, gelu)
        elif linear.wide is not None:
            product = ops.int16_linear(rows, linear.wide, None, bias, gelu)
        else:
            product_of = ops.int8_linear if linear.int8_blocks else ops.int16_linear
            product = product_of(rows, linear.weight, linear.scales, bias, gelu)
    return product.view(*hidden.shape[:-1], -1)


def add_linear(residual: Tensor, hidden: Tensor, layer: Linear, ops: Ops) -> Tensor:
    """The product of hidden [..., in] plus residual [..., out], which may be overwritten."""
    if not is_exact(layer):
        return residual.add_(linear(hidden, layer, ops))
    rows, before = hidden.reshape(-1, hidden.shape[-1]), residual.reshape(-1, residual.shape[-1])
    return ops.float32_linear(rows, layer.weight, layer.bias, before).view(residual.shape)


def output_rows(linear: Linear, first: int, last: int | None = None) -> Linear:
    """The part of a product that gives outputs [first, last): views. Of a packed weight: multiples of its panels."""
    rows = slice(first, last)
    bias = None if linear.bias is None else linear.bias[rows]
    scales = None if linear.scales is None else linear.scales[rows]
    wide = None if linear.wide is None else linear.wide[rows]
    return replace(linear, weight=_rows_of(linear, first, last), bias=bias, scales=scales, wide=wide)


def _rows_of(linear: Linear, first: int, last: int | None) -> Tensor:
    if not is_packed(linear):
        return linear.weight[first:last]
    panel = linear.weight.shape[3]
    return linear.weight[first // panel : None if last is None else last // panel]
