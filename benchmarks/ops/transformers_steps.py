"""One forward of a causal sub-model after cached tokens: by Transformers, and by us."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from bark_accel.hf.compat import cache_argument
from bark_accel.hf.transformer import transformer_spec, transformer_weights
from bark_accel.ops.backend import get_ops
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCachePool
from bark_accel.transformer.precision import convert
from bark_accel.transformer.weights import TransformerWeights, tensors_of

CPU = torch.device("cpu")
CAPACITY = 1024
Forward = Callable[[], Tensor]


def stock_forward(submodel: Any, ids: Tensor, context: int) -> Forward:
    """Scores after ids [B, T] that follow `context` cached tokens, again and again."""
    cache = DynamicCache(config=submodel.config)
    if context:
        past = torch.zeros(ids.shape[0], context, dtype=torch.int64)
        submodel(past, **{cache_argument(): cache}, use_cache=True)

    def forward() -> Tensor:
        past = cache if context else DynamicCache(config=submodel.config)
        logits = submodel(ids, **{cache_argument(): past}, use_cache=True).logits[:, -1]
        past.crop(-ids.shape[1])
        return logits

    return forward


def stock_static_forward(submodel: Any, ids: Tensor, context: int) -> Forward:
    """The same on a `StaticCache`, as `cache_implementation="static"` makes it."""
    cache = StaticCache(config=submodel.config, max_cache_len=CAPACITY)
    submodel(torch.zeros(ids.shape[0], context, dtype=torch.int64), **{cache_argument(): cache}, use_cache=True)
    lengths = [layer.cumulative_length.clone() for layer in cache.layers if hasattr(layer, "cumulative_length")]

    def forward() -> Tensor:
        logits = submodel(ids, **{cache_argument(): cache}, use_cache=True).logits[:, -1]
        for layer, length in zip(cache.layers, lengths, strict=False):
            layer.cumulative_length.copy_(length)
        return logits

    return forward


class OurForward:
    """The same over our static cache, which stays borrowed; `rows` of the head."""

    def __init__(
        self,
        stage: str,
        submodel: Any,
        ids: Tensor,
        context: int,
        precision: str,
        rows: slice,
        cache_dtype: torch.dtype | None = None,
    ):
        weights = convert(transformer_weights(stage, submodel), precision)
        spec = transformer_spec(submodel)
        self.model = CausalModel(weights, spec, get_ops("auto", CPU), cache_dtype=cache_dtype)
        self._ids, self._context, self._rows = ids, context, rows
        self._loan = KVCachePool().borrow(spec, ids.shape[0], self.model.cache_dtype, CPU)
        self._cache = self._loan.__enter__()
        if context:
            self.model.next_logits(torch.zeros(ids.shape[0], context, dtype=torch.int64), self._cache, rows)

    def __call__(self) -> Tensor:
        self._cache.truncate(self._context)
        return self.model.next_logits(self._ids, self._cache, self._rows)

    def bytes_read(self) -> int:
        """Count the bytes that a decode step reads: matrices, vectors, the head's rows, and the cache."""
        weights = self.model.weights
        cache = self._cache.keys[..., : self._context, :]
        head = weights.heads[0]
        rows = (self._rows.stop - self._rows.start) / head.weight.shape[0]
        return int(matrix_bytes(weights) + rows * sum(t.nbytes for t in tensors_of(head)) + 2 * cache.nbytes)


def matrix_bytes(weights: TransformerWeights) -> int:
    return sum(t.nbytes for t in tensors_of((weights.layers, weights.norm_final)))
