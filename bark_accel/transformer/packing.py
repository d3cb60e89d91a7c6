"""Matrices laid out ahead for products of many rows, where no decode step reads them."""

from __future__ import annotations

from dataclasses import replace

from bark_accel.ops.backend import Ops

from .layers import is_exact
from .weights import Layer, Linear, TransformerWeights

# A matrix may be cut where a panel of any instruction set ends.
_CUT = 32


def packed(weights: TransformerWeights, ops: Ops) -> TransformerWeights:
    """Lay the layers' matrices out as `ops` read them: the same bits come out of `bidirectional_forward`, sooner.

    float32 weights, and those of a width that is not a multiple of 32, stay as they are; so do all where `ops` have no
    such layout. Heads stay too: a pass reads one.
    """
    pack_linear = ops.pack_linear
    if pack_linear is None or is_exact(weights.layers[0].qkv) or weights.layers[0].attention_out.weight.shape[0] % _CUT:
        return weights

    def laid_out(linear: Linear) -> Linear:
        return replace(linear, weight=pack_linear(linear.weight, linear.scales, linear.int8_blocks), scales=None)

    def layer_of(layer: Layer) -> Layer:
        qkv, attention_out = laid_out(layer.qkv), laid_out(layer.attention_out)
        mlp_in, mlp_out = laid_out(layer.mlp_in), laid_out(layer.mlp_out)
        return replace(layer, qkv=qkv, attention_out=attention_out, mlp_in=mlp_in, mlp_out=mlp_out)

    return replace(weights, layers=tuple(map(layer_of, weights.layers)))
