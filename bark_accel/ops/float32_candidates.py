"""Implementations of float32 products and attention of blocks of tokens on a CPU, by name."""

from __future__ import annotations

import torch
from torch import Tensor

from . import native, reference


def onednn_linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, gelu: bool = False
) -> Tensor:
    """Compute the product by oneDNN, as torch's compiler calls it."""
    product = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    product = torch.ops.aten.gelu_(product) if gelu else product
    return product if residual is None else product.add_(residual)


PRODUCTS = {"torch": reference.float32_linear, "native": native.float32_linear, "onednn": onednn_linear}
ATTENTION = {"torch": reference.float32_attention, "native": native.float32_attention}
CONVOLUTIONS = {"torch": reference.float32_conv, "native": native.float32_conv}
