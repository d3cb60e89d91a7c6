"""The causal transformer over a static cache, and what stands before and after its blocks.

Implements `BarkCausalModel.forward` of Transformers.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .backend import Ops
from .kv_cache import KVCache
from .layers import add_linear_, linear, norm
from .prefill import prefill
from .spec import TransformerSpec
from .weights import TransformerWeights


def causal_forward(
    weights: TransformerWeights, spec: TransformerSpec, hidden: Tensor, cache: KVCache, ops: Ops
) -> Tensor:
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
        Final LayerNorm of the last position: what the head needs for the next token.
    """
    batch_size, tokens, _ = hidden.shape
    if tokens > 1:
        return prefill(weights, spec, hidden, cache, ops)
    heads = (batch_size, tokens, 3, spec.num_heads, spec.head_size)
    for i, layer in enumerate(weights.layers):
        qkv = linear(norm(hidden, layer.norm_1), layer.qkv, ops).view(heads)
        query, key, value = qkv.to(cache.keys.dtype).unbind(2)
        attended = ops.static_cache_attention(query, key, value, cache.keys[i], cache.values[i], cache.length)
        add_linear_(hidden, attended.float(), layer.attention_out, ops)
        add_linear_(hidden, linear(norm(hidden, layer.norm_2), layer.mlp_in, ops, gelu=True), layer.mlp_out, ops)
    cache.advance(tokens)
    return norm(hidden[:, -1], weights.norm_final)


def head_logits(hidden: Tensor, head: Tensor) -> Tensor:
    """Scores [B, V'] of hidden [B, C] under a head or a slice of its rows [V', C], in the head's dtype."""
    return F.linear(hidden.to(head.dtype), head)


def embed(table: Tensor, ids: Tensor) -> Tensor:
    """Rows of `table` [V, C] at `ids`, as float32 (an exact conversion)."""
    return F.embedding(ids, table).float()


def positions(weights: TransformerWeights, start: int, tokens: int) -> Tensor:
    """Position embeddings [tokens, C] float32.

    Raises
    ------
    IndexError
        The model has no such positions (Transformers fails there too).
    """
    if start + tokens > weights.positions.shape[0]:
        raise IndexError(
            f"bark_accel: expected at most {weights.positions.shape[0]} positions (block_size), got {start} in the "
            f"cache plus {tokens} new; ask for fewer new tokens"
        )
    return weights.positions[start : start + tokens].float()
