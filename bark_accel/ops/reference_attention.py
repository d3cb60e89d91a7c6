"""Attention over caches in plain torch, as the references of `static_cache_attention` and `decode_step` have it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks as op_checks
from .checks import NEG_INF, check_attention_inputs
from .int8_entries import to_entries, to_vectors


def static_cache_attention(
    query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, length: Tensor
) -> Tensor:
    """Plain-torch reference of :func:`bark_accel.ops.static_cache_attention`."""
    check_attention_inputs(query, key, value, key_cache, value_cache, length)
    if not op_checks.on_host(query):
        places = Places(length, query.shape[1], key_cache.shape[2])
        return attend_behind_mask(query, key, value, key_cache, value_cache, places)
    starts = length.tolist()
    if starts and min(starts) == max(starts) >= 0:
        return _attend_to_filled(query, key, value, key_cache, value_cache, starts[0])
    out = query.new_full((*query.shape[:2], query.shape[2] * query.shape[3]), math.nan)
    for i, start in enumerate(starts):
        if start >= 0:
            one = slice(i, i + 1)
            new = query[one], key[one], value[one]
            out[one] = _attend_to_filled(*new, key_cache[one], value_cache[one], start)
    return out


def _attend_to_filled(
    query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, start: int
) -> Tensor:
    batch, tokens, heads, head_dim = query.shape
    end = start + tokens
    key_cache[:, :, start:end] = key.transpose(1, 2)
    value_cache[:, :, start:end] = value.transpose(1, 2)
    scores = query.transpose(1, 2).float() @ key_cache[:, :, :end].float().transpose(-1, -2)
    scores = scores * (1.0 / math.sqrt(head_dim))
    if tokens > 1:
        future = torch.ones(tokens, end, dtype=torch.bool, device=query.device).triu(diagonal=start + 1)
        scores = scores.masked_fill(future, NEG_INF)
    mixed = scores.softmax(dim=-1) @ value_cache[:, :, :end].float()
    return mixed.transpose(1, 2).reshape(batch, tokens, heads * head_dim).to(query.dtype)


def attend_to_int8(
    query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, length: Tensor
) -> Tensor:
    """Attend as `static_cache_attention` does, all in float32, with caches of int8 entries."""
    floats = []
    for new, cache in ((key, key_cache), (value, value_cache)):
        entries = to_entries(new, torch.int8)
        for row, start in enumerate(length.tolist()):
            if start >= 0:
                cache[row, :, start : start + new.shape[1]] = entries[row].transpose(0, 1)
        floats.append((to_vectors(entries), to_vectors(cache)))
    (key, keys), (value, values) = floats
    return static_cache_attention(query, key, value, keys, values, length)


class Places:
    """Positions of each row's new tokens in a cache, on the device: no shape depends on them.

    `where` [B, T] int64 counts from the lengths [B]; `fits` [B, 1, 1, 1] bool says of which rows it fits the capacity;
    `seen` [B, 1, T, capacity] bool says which entries a token sees.
    """

    def __init__(self, length: Tensor, tokens: int, capacity: int):
        self.where = length[:, None] + torch.arange(tokens, dtype=torch.int64, device=length.device)
        self.fits = ((length >= 0) & (length <= capacity - tokens))[:, None, None, None]
        self.seen = (torch.arange(capacity, dtype=torch.int64, device=length.device) <= self.where[..., None])[:, None]
        self._at = self.where.clamp(0, capacity - 1)[:, None, :, None]

    def write(self, cache: Tensor, new: Tensor) -> None:
        """Put `new` [B, T, H, D] into `cache` [B, H, capacity, D] where it fits."""
        new = new.transpose(1, 2)
        at = self._at.expand(new.shape)
        cache.scatter_(2, at, torch.where(self.fits, new, cache.gather(2, at)))


def attend_behind_mask(
    query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, places: Places
) -> Tensor:
    """Attend as `_attend_to_filled` does, with the new tokens of each row at `places`."""
    places.write(key_cache, key)
    places.write(value_cache, value)
    attended = F.scaled_dot_product_attention(query.transpose(1, 2), key_cache, value_cache, attn_mask=places.seen)
    return attended.masked_fill(~places.fits, math.nan).transpose(1, 2).flatten(2)
