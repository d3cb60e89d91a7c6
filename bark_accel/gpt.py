"""The two forward passes of Bark's transformers: causal over a static cache, and bidirectional.

The residual stream, LayerNorm statistics and softmax are float32 whatever the dtype of the weights; a 16-bit model
rounds once at the input and once at the output of each matrix product.
Implements `BarkCausalModel.forward` and `BarkFineModel.forward` of Transformers.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .backend import Ops
from .kv_cache import KVCache
from .spec import TransformerSpec
from .weights import Layer, Linear, Norm, TransformerWeights


def _norm(hidden: Tensor, norm: Norm) -> Tensor:
    return F.layer_norm(hidden, norm.weight.shape, norm.weight, norm.bias, norm.eps)


def _linear(hidden: Tensor, linear: Linear) -> Tensor:
    return F.linear(hidden.to(linear.weight.dtype), linear.weight, linear.bias)


def _mlp(hidden: Tensor, layer: Layer) -> Tensor:
    inner = F.gelu(_linear(_norm(hidden, layer.norm_2), layer.mlp_in))
    return _linear(inner, layer.mlp_out)


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
    heads = (batch_size, tokens, 3, spec.num_heads, spec.head_size)
    last = len(weights.layers) - 1
    for i, layer in enumerate(weights.layers):
        qkv = _linear(_norm(hidden, layer.norm_1), layer.qkv).view(heads)
        query, key, value = qkv.unbind(2)
        attended = ops.static_cache_attention(query, key, value, cache.keys[i], cache.values[i], cache.length)
        if i == last and tokens > 1:
            hidden, attended = hidden[:, -1:], attended[:, -1:]
        hidden = hidden.add_(_linear(attended, layer.attention_out))
        hidden = hidden.add_(_mlp(hidden, layer))
    cache.advance(tokens)
    return _norm(hidden[:, -1], weights.norm_final)


def bidirectional_forward(
    weights: TransformerWeights,
    spec: TransformerSpec,
    hidden: Tensor,
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
    batch_size, frames, _ = hidden.shape
    rows = slice(first_row, frames if last_row is None else last_row)
    heads = (batch_size, frames, 3, spec.num_heads, spec.head_size)
    last = len(weights.layers) - 1
    for i, layer in enumerate(weights.layers):
        qkv = _linear(_norm(hidden, layer.norm_1), layer.qkv).view(heads)
        query, key, value = qkv.transpose(1, 3).unbind(2)
        if i == last:
            hidden, query = hidden[:, rows], query[:, :, rows]
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        hidden = hidden.add_(_linear(attended, layer.attention_out))
        hidden = hidden.add_(_mlp(hidden, layer))
    return _norm(hidden, weights.norm_final)


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
