"""A block of new tokens through the causal transformer: all of them at once, attention by blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bark_accel.ops.backend import Ops
from bark_accel.ops.int8_entries import to_entries

from .dynamo import Compiler
from .kv_cache import KVCache
from .layers import PLAIN, add_linear, is_exact, linear, norm, output_rows
from .spec import TransformerSpec
from .weights import TransformerWeights

# Compiled prompts have lengths of 1 more than a multiple of this part of all positions: suno's shortest one has 257
# tokens of 1024, its longest 887.
_LENGTHS = 8
# (query [B, T', H, D], key and value [B, T, H, D], layer) -> [B, T', H * D] of the last T' positions.
Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]


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
    exact, tokens = is_exact(weights.layers[0].qkv), hidden.shape[1]

    def attend(query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        return _attend(query, key, value, cache, layer, exact, ops)

    hidden = _forward(weights, spec, hidden, attend, lambda rows: rows[:, -1:], ops)
    cache.advance(tokens)
    return hidden


def compiled_prefill(
    weights: TransformerWeights, spec: TransformerSpec, hidden: Tensor, cache: KVCache, compiler: Compiler
) -> Tensor:
    """`prefill` of an empty cache by a compiled program: row after row, padded to one of few lengths."""
    tokens, step = hidden.shape[1], max(1, spec.block_size // _LENGTHS)
    length = max(tokens, min(spec.block_size, math.ceil((tokens - 1) / step) * step + 1))
    padded = F.pad(hidden, (0, 0, 0, length - tokens))
    last = torch.tensor([tokens - 1], dtype=torch.int64, device=hidden.device)
    spec = replace(spec, output_vocab_size=0)  # two stages that differ in their heads alone share a program
    rows = []
    for row in range(hidden.shape[0]):
        name = f"prompt of {length} tokens"
        final, keys, values = compiler.run(name, prompt, weights, spec, padded[row : row + 1], last)
        for entries, vectors in ((cache.keys, keys), (cache.values, values)):
            entries[:, row, :, :tokens] = to_entries(vectors[:, 0, :, :tokens], cache.dtype)
        rows.append(final)
    cache.advance(tokens)
    return torch.cat(rows)


def prompt(
    weights: TransformerWeights, spec: TransformerSpec, hidden: Tensor, last: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a whole prompt, as a function of tensors in plain torch.

    Parameters
    ----------
    hidden : Tensor [B, T, C] float32
        Token plus position embeddings.
    last : Tensor [1] int64
        Place of the last token: what is fed behind it changes nothing up to it.

    Returns
    -------
    (Tensor [B, C] float32, Tensor [layers, B, H, T, D], Tensor [layers, B, H, T, D])
        Final LayerNorm at `last`, keys and values.
    """
    exact, keys, values = is_exact(weights.layers[0].qkv), [], []
    seen = torch.arange(hidden.shape[1], dtype=torch.int64, device=hidden.device)[None] <= last  # [1, T]

    def attend(query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        key, value = (each.transpose(1, 2).to(weights.cache_dtype) for each in (key, value))
        keys.append(key)
        values.append(value)
        if layer + 1 == len(weights.layers):
            query = query.transpose(1, 2).to(key.dtype)
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
            return attended.transpose(1, 2).flatten(2).float()
        return (PLAIN.float32_attention if exact else PLAIN.int16_attention)(query, key, value, causal=True)

    final = _forward(weights, spec, hidden.clone(), attend, lambda rows: rows.index_select(1, last), PLAIN)
    return final, torch.stack(keys), torch.stack(values)


def _forward(
    weights: TransformerWeights,
    spec: TransformerSpec,
    hidden: Tensor,
    attend: Attend,
    last_of: Callable[[Tensor], Tensor],
    ops: Ops,
) -> Tensor:
    """Final LayerNorm [B, C] of one position of hidden [B, T, C], which is overwritten; `last_of` takes it out."""
    last = len(weights.layers) - 1
    heads = spec.num_heads, spec.head_size
    for i, layer in enumerate(weights.layers):
        normed = norm(hidden, layer.norm_1)
        if i < last:
            query, key, value = linear(normed, layer.qkv, ops).unflatten(2, (3, *heads)).unbind(2)
        else:
            key, value = linear(normed, output_rows(layer.qkv, spec.width), ops).unflatten(2, (2, *heads)).unbind(2)
            query = linear(last_of(normed), output_rows(layer.qkv, 0, spec.width), ops).unflatten(2, heads)
            hidden = last_of(hidden).contiguous()
        hidden = add_linear(hidden, attend(query, key, value, i), layer.attention_out, ops)
        inner = linear(norm(hidden, layer.norm_2), layer.mlp_in, ops, gelu=True)
        hidden = add_linear(hidden, inner, layer.mlp_out, ops)
    return norm(hidden[:, -1], weights.norm_final)


def _attend(query: Tensor, key: Tensor, value: Tensor, cache: KVCache, layer: int, exact: bool, ops: Ops) -> Tensor:
    """Store key and value [B, T, H, D]; attention [B, T', H * D] of the last T' positions, query [B, T', H, D]."""
    if exact and cache.position and query.shape[1] == key.shape[1] and cache.dtype != torch.int8:
        return ops.static_cache_attention(query, key, value, cache.keys[layer], cache.values[layer], cache.length)
    keys, values = cache.write(layer, key, value)
    attention = ops.float32_attention if exact else ops.int16_attention
    return attention(query, keys, values, causal=True)
