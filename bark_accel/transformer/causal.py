"""Bark's causal transformers over a static cache.

Implements `BarkCausalModel.forward` of Transformers. The residual stream, LayerNorm statistics and softmax are float32
whatever the dtype of the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bark_accel.ops import reference, token_run
from bark_accel.ops.graph_draw import NextStep
from bark_accel.ops.interface import Ops, StepWeights
from bark_accel.ops.token_run import TokenRun

from .dynamo import Compiler
from .kv_cache import KVCache
from .layers import linear, output_rows
from .prefill import compiled_prefill, prefill
from .spec import TransformerSpec
from .weights import Layer, Norm, TransformerWeights

# Longest prompt, in tokens of all rows, for `decode_step`; for longer ones matrix products are faster.
MAX_DECODE_TOKENS = 16


@dataclass(frozen=True)
class Feed:
    """Input of a model before a token is drawn, and the rows of the head that score it.

    Token ids [B, T], or a prompt: token plus position embeddings [B, T, C] float32, which are overwritten.
    """

    tokens: Tensor
    rows: slice

    @property
    def is_step(self) -> bool:
        """Tell whether it is one token of one row, which rows of other generations may share a step with."""
        return self.tokens.shape == (1, 1)


class CausalModel:
    """One causal transformer: weights, shape, the ops that run it, and a compiler if its prompts have one.

    `cache_dtype` is that of the caches it is to have: the weights' own choice, unless it is given.
    """

    def __init__(
        self,
        weights: TransformerWeights,
        spec: TransformerSpec,
        ops: Ops,
        compiler: Compiler | None = None,
        cache_dtype: torch.dtype | None = None,
    ):
        self.weights = weights
        self.cache_dtype: torch.dtype = weights.cache_dtype if cache_dtype is None else cache_dtype
        self.spec = spec
        self.ops = ops
        self._compiler = compiler
        norms = [norm for layer in weights.layers for norm in (layer.norm_1, layer.norm_2)]
        head = weights.heads[0]
        self._step = StepWeights(
            token_table=weights.token_tables[0],
            positions=weights.positions,
            layers=flat_layers(weights),
            eps=[norm.eps for norm in (*norms, weights.norm_final)],
            head=head.weight,
            head_scales=head.scales,
            num_heads=spec.num_heads,
        )

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings [..., C] float32 of ids [...] (an exact conversion)."""
        return F.embedding(ids, self.weights.token_tables[0]).float()

    def positions(self, start: int, tokens: int) -> Tensor:
        """Position embeddings [tokens, C] float32.

        Raises
        ------
        IndexError
            The model has no such positions (Transformers fails there too).
        """
        self.check_room(start, tokens)
        return self.weights.positions[start : start + tokens].float()

    def check_room(self, start: int, tokens: int) -> None:
        """Raise as `positions` does."""
        limit = self.weights.positions.shape[0]
        if start + tokens > limit:
            raise IndexError(
                f"bark_accel: expected at most {limit} positions (block_size), got {start} in the cache plus "
                f"{tokens} new; ask for fewer new tokens"
            )

    def logits(self, feed: Feed, cache: KVCache) -> Tensor:
        """Append what is fed to the cache; scores [B, rows] float32 of what follows the last token."""
        if feed.tokens.is_floating_point():
            return self.prefill_logits(feed.tokens, cache, feed.rows)
        return self.next_logits(feed.tokens, cache, feed.rows)

    def next_logits(self, ids: Tensor, cache: KVCache, rows: slice) -> Tensor:
        """Append tokens [B, T] to the cache; scores [B, rows] float32 of what follows the last one."""
        tokens = ids.shape[1]
        if tokens == 1 or ids.numel() <= MAX_DECODE_TOKENS:
            return self.decode(ids, cache, rows)[:, -1]
        hidden = self.embed(ids) + self.positions(cache.position, tokens)
        return self.prefill_logits(hidden, cache, rows)

    def prefill_logits(self, hidden: Tensor, cache: KVCache, rows: slice) -> Tensor:
        """The same for token plus position embeddings [B, T, C] float32, which are overwritten."""
        if self._compiler is None or cache.position:
            hidden = prefill(self.weights, self.spec, hidden, cache, self.ops)
        else:
            hidden = compiled_prefill(self.weights, self.spec, hidden, cache, self._compiler)
        return linear(hidden, output_rows(self.weights.heads[0], rows.start, rows.stop), self.ops).float()

    def decode(self, ids: Tensor, cache: KVCache, rows: slice) -> Tensor:
        """Append tokens [B, T]; scores [B, T, rows] float32 after each of them."""
        self.check_room(cache.position, ids.shape[1])
        logits = self.step_logits(ids, cache, rows)
        cache.advance(ids.shape[1])
        return logits

    def step_logits(self, ids: Tensor, cache: KVCache, rows: slice) -> Tensor:
        """Run `decode` by the cache's length on the device alone; the caller checks the capacity and keeps count."""
        head = output_rows(self.weights.heads[0], rows.start, rows.stop)
        step = self._step._replace(head=head.weight, head_scales=head.scales)
        return self.ops.decode_step(ids, step, cache.tensors)

    def draw_tokens(
        self, ranges: Sequence[slice], cache: KVCache, step: NextStep, run: TokenRun, rules: Sequence[Sequence[Any]]
    ) -> None:
        """Draw many tokens from the head's rows `ranges`, which take turns, by ops that have a `decode_tokens`."""
        assert self.ops.decode_tokens is not None
        heads = [output_rows(self.weights.heads[0], rows.start, rows.stop) for rows in ranges]
        pairs = [(head.weight, head.scales) for head in heads]
        self.ops.decode_tokens(self._step, pairs, cache.tensors, step, run, rules)

    def draws_tokens(self, cache: KVCache) -> bool:
        """Tell whether `draw_tokens` is chosen for a batch."""
        return self.ops.decode_tokens is not None and token_run.is_chosen(self._step, cache.tensors)

    def step_to_be_tried(self, cache: KVCache) -> str | None:
        """Name what a trial has to choose a kind of step for (`step_choice`); None where one is chosen."""
        return token_run.to_be_tried(self._step, cache.tensors)

    def takes_torch_steps(self, cache: KVCache) -> bool:
        """Tell whether `with_torch_steps` is chosen for a batch on a GPU."""
        return token_run.is_torchs(self._step, cache.tensors)

    def with_torch_steps(self) -> CausalModel:
        """The same model, whose steps are torch's own operations."""
        model = copy.copy(self)
        model.ops = replace(self.ops, decode_step=reference.decode_step, decode_tokens=None)
        return model

    @property
    def matrices(self) -> list[Tensor]:
        """Tables, matrices and scales, which a captured step reads by address. If one moves, its graphs are invalid."""
        step = self._step
        tensors = [step.token_table, step.positions, step.head, step.head_scales, *step.layers]
        return [t for t in tensors if t is not None and t.dim() > 1]

    @property
    def vectors(self) -> list[Tensor]:
        """1-D float32 parameters; of 16-bit models new copies on every call, so graphs read buffers of their own."""
        return [t for t in self._step.layers if t is not None and t.dim() == 1]

    def with_vectors(self, vectors: Sequence[Tensor]) -> CausalModel:
        """The same model, whose steps read `vectors` instead of its own."""
        model, replacement = copy.copy(self), iter(vectors)
        layers = [next(replacement) if t is not None and t.dim() == 1 else t for t in self._step.layers]
        model._step = self._step._replace(layers=layers)
        return model


def flat_layers(weights: TransformerWeights) -> list[Tensor | None]:
    """`StepWeights.layers`: 16 entries a layer, then the final LayerNorm."""
    return [t for layer in weights.layers for t in _flat_layer(layer)] + _flat_norm(weights.norm_final)


def _flat_layer(layer: Layer) -> list[Tensor | None]:
    flat = _flat_norm(layer.norm_1)
    for product in (layer.qkv, layer.attention_out):
        flat += [product.weight, _float(product.bias), product.scales]
    flat += _flat_norm(layer.norm_2)
    for product in (layer.mlp_in, layer.mlp_out):
        flat += [product.weight, _float(product.bias), product.scales]
    return flat


def _flat_norm(norm: Norm) -> list[Tensor | None]:
    return [norm.weight, norm.bias]


def _float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()
