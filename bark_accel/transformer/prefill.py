"""A block of new tokens through the causal transformer: all of them at once, attention by blocks."""

from __future__ import annotations

from torch import Tensor

from bark_accel.ops.backend import Ops

from .kv_cache import KVCache
from .layers import add_linear, is_exact, linear, norm, output_rows
from .spec import TransformerSpec
from .weights import TransformerWeights


def prefill(weights: TransformerWeights, spec: TransformerSpec, hidden: Tensor, cache: KVCache, ops: Ops) -> Tensor:
    """Append a block of tokens to the cache.

    Parameters
    ----------
    hidden : Tensor [B, T, C] float32
        Token plus position embeddings; overwritten.
    cache : KVCache
        Grows by T entries.

    Returns
    -------
    Tensor [B, C] float32
        Final LayerNorm of the last position. The last layer computes nothing else beyond its keys and values.
    """
    tokens, last = hidden.shape[1], len(weights.layers) - 1
    for i, layer in enumerate(weights.layers):
        normed = norm(hidden, layer.norm_1)
        if i < last:
            query, key, value = linear(normed, layer.qkv, ops).unflatten(2, (3, spec.num_heads, -1)).unbind(2)
        else:
            key, value = (
                linear(normed, output_rows(layer.qkv, spec.width), ops).unflatten(2, (2, spec.num_heads, -1)).unbind(2)
            )
            query = linear(normed[:, -1:], output_rows(layer.qkv, 0, spec.width), ops)
            query, hidden = query.unflatten(2, (spec.num_heads, -1)), hidden[:, -1:].contiguous()
        attended = _attend(query, key, value, cache, i, is_exact(layer.qkv), ops)
        hidden = add_linear(hidden, attended, layer.attention_out, ops)
        inner = linear(norm(hidden, layer.norm_2), layer.mlp_in, ops, gelu=True)
        hidden = add_linear(hidden, inner, layer.mlp_out, ops)
    cache.advance(tokens)
    return norm(hidden[:, -1], weights.norm_final)


def _attend(query: Tensor, key: Tensor, value: Tensor, cache: KVCache, layer: int, exact: bool, ops: Ops) -> Tensor:
    """Store key and value [B, T, H, D]; attention [B, T', H * D] of the last T' positions, query [B, T', H, D]."""
    end = cache.position + key.shape[1]
    keys, values = cache.keys[layer, :, :, :end], cache.values[layer, :, :, :end]
    if exact and cache.position and query.shape[1] == key.shape[1]:
        return ops.static_cache_attention(query, key, value, cache.keys[layer], cache.values[layer], cache.length)
    keys[:, :, cache.position :].copy_(key.transpose(1, 2))
    values[:, :, cache.position :].copy_(value.transpose(1, 2))
    attention = ops.float32_attention if exact else ops.int16_attention
    return attention(query, keys, values, causal=True)
