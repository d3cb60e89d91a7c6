"""What a transformer block is made of: LayerNorm, and matrix products in the precision that the weights ask for.

The residual stream, LayerNorm statistics and softmax are float32 whatever the dtype of the weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bark_accel.ops.backend import Ops

from .weights import Linear, Norm


def norm(hidden: Tensor, norm: Norm) -> Tensor:
    return F.layer_norm(hidden, norm.weight.shape, norm.weight, norm.bias, norm.eps)


def is_exact(linear: Linear) -> bool:
    """Whether its products are float32, as stock's: smaller weights take the 16-bit ops."""
    return linear.weight.is_floating_point() and linear.weight.itemsize >= 4


def linear(hidden: Tensor, linear: Linear, ops: Ops, *, gelu: bool = False) -> Tensor:
    """Product [..., out] float32 of hidden [..., in] float32, with an exact GELU after it if asked for."""
    if is_exact(linear):
        product = F.linear(hidden, linear.weight, linear.bias)
        return torch.ops.aten.gelu_(product) if gelu else product
    rows = hidden.reshape(-1, hidden.shape[-1])
    bias = None if linear.bias is None else linear.bias.float()
    return ops.int16_linear(rows, linear.weight, linear.scales, bias, gelu).view(*hidden.shape[:-1], -1)


def add_linear_(residual: Tensor, hidden: Tensor, layer: Linear, ops: Ops) -> None:
    """Add the product of hidden [..., in] to residual [..., out] in place."""
    if not is_exact(layer) or not residual.is_contiguous():
        residual.add_(linear(hidden, layer, ops))
        return
    # One pass over the residual instead of two.
    residual.view(-1, residual.shape[-1]).addmm_(hidden.reshape(-1, hidden.shape[-1]), layer.weight.t())
    if layer.bias is not None:
        residual.add_(layer.bias)


def output_rows(linear: Linear, first: int, last: int | None = None) -> Linear:
    """The part of a product that gives outputs [first, last): views."""
    rows = slice(first, last)
    bias = None if linear.bias is None else linear.bias[rows]
    scales = None if linear.scales is None else linear.scales[rows]
    return Linear(linear.weight[rows], bias, scales)
