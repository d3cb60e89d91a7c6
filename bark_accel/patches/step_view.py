"""A view of a causal module whose `forward` is our model step, for Transformers' own token loops.

Where only the choice of the token is special (logits processors, stopping criteria, beams, scores asked for),
Transformers' `generate` runs as it is; what it calls for logits is a prefill or a decode step over a static cache.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from bark_accel.hf.compat import cache_argument
from bark_accel.hf.offload import is_offloaded
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCache

# Lends an empty cache for a number of rows.
Lend = Callable[[int], KVCache]


@contextmanager
def step_view(
    module: Any, model: CausalModel, borrow: Callable[[int], AbstractContextManager[KVCache]]
) -> Iterator[Any]:
    """Lend a throw-away view of `module` that shares everything with it but `forward`, which is `model`'s step.

    Parameters
    ----------
    module : BarkCausalModel
    model : CausalModel
        On the module's weights.
    borrow : callable (rows) -> context manager of a KVCache
        Entered once for each number of rows that a prompt has; left with the view.
    """
    with ExitStack() as held:
        steps = StepForward(model, lambda rows: held.enter_context(borrow(rows)), type(module).forward)
        view = copy.copy(module)
        # The module's own table may have been given up (`release_originals`).
        if is_offloaded(module):
            # Where the module's own weights are elsewhere, its device is that of its hook.
            vars(view).update(_hf_hook=SimpleNamespace(execution_device=model.weights.device))
        vars(view).update(input_embeds_layer=model.embed, forward=steps, _forward_pre_hooks={})
        vars(view).update(_reorder_cache=lambda cache, beams: cache.reorder_cache(beams))
        try:
            yield view
        finally:
            vars(view).clear()  # the view and its steps refer to each other


class StepCache:
    """The part of a Transformers `Cache` that token loops use, over a cache of ours."""

    is_compileable = False
    to_legacy_cache = None
    """With `return_legacy_cache`, Transformers 4 asks for it: Bark returns no cache."""

    def __init__(self, own: KVCache):
        self.own = own
        self.ids = torch.empty(own.keys.shape[1], 0, dtype=torch.int64, device=own.keys.device)
        """Tokens in the cache [B, T]; where they came as embeddings, a number below 0, the same for equal rows."""

    def get_seq_length(self, layer_idx: int = 0, cache_position: Any = None) -> int:
        """Count the tokens in the cache."""
        return self.own.position

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """Return the capacity in tokens."""
        return self.own.capacity

    def __getitem__(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, T, D] of a layer: older versions of Transformers read the length from their shape."""
        end = self.own.position
        return self.own.keys[layer, :, :, :end], self.own.values[layer, :, :, :end]

    def __len__(self) -> int:
        return self.own.keys.shape[0]

    def reorder_cache(self, beams: Tensor) -> StepCache:
        """Give row i what row `beams[i]` had (beam search): what is copied begins where the ids of the two differ."""
        beams = beams.to(self.ids.device)
        moved = (beams != torch.arange(len(beams), dtype=beams.dtype, device=beams.device)).nonzero()[:, 0]
        if len(moved) == 0:
            return self
        sources = beams[moved]
        start, end = _common_prefix(self.ids[moved], self.ids[sources]), self.own.position
        for entries in (self.own.keys, self.own.values):
            entries[:, moved, :, start:end] = entries[:, sources, :, start:end]
        self.ids = self.ids[beams]
        return self


class StepForward:
    """`BarkCausalModel.forward` over a static cache: prompts are prefilled, tokens decoded.

    A prompt that begins with the tokens in the cache, as most windows of the coarse stage do, only feeds the rest.
    """

    def __init__(self, model: CausalModel, lend: Lend, forward: Callable):
        self._model = model
        self._lend = lend
        self._cache: StepCache | None = None
        # Transformers asks the signature which arguments a model takes.
        self.__signature__ = inspect.Signature(list(inspect.signature(forward).parameters.values())[1:])

    def __call__(self, input_ids: Tensor | None = None, **inputs: Any) -> CausalLMOutputWithPast:
        """Logits [B, 1, V] float32 after the last token. Masks and positions say nothing new about whole prompts."""
        embeds = inputs.get("inputs_embeds", inputs.get("input_embeds"))
        past = inputs.get(cache_argument())
        if past is not None and past is self._cache and input_ids is not None and not self._repeats(input_ids, inputs):
            logits = self._feed(self._cache, input_ids)
        elif embeds is not None:
            logits = self._prefill(embeds)
        elif input_ids is not None:
            cache = self._with_start_of(input_ids)
            logits = self._feed(cache, input_ids[:, cache.own.position :])
        else:
            raise ValueError("forward: expected input_ids or embeddings, got neither")
        outputs: dict[str, Any] = {cache_argument(): self._cache}
        return CausalLMOutputWithPast(logits=logits[:, None], **outputs)

    def _repeats(self, ids: Tensor, inputs: dict[str, Any]) -> bool:
        """Tell whether the tokens in the cache are fed again: without a cache, Transformers 5.0 passes it on too."""
        return inputs.get("use_cache") is False and self._cache is not None and ids.shape[1] > self._cache.own.position

    @property
    def _head(self) -> slice:
        return slice(0, self._model.spec.output_vocab_size)

    def _prefill(self, embeds: Tensor) -> Tensor:
        cache = self._empty(embeds.shape[0])
        prompts = embeds.flatten(1).unique(dim=0, return_inverse=True)[1]
        cache.ids = (-1 - prompts)[:, None].expand(embeds.shape[:2])
        hidden = embeds.float() + self._model.positions(0, embeds.shape[1])
        return self._model.prefill_logits(hidden, cache.own, self._head)

    def _feed(self, cache: StepCache, ids: Tensor) -> Tensor:
        cache.ids = torch.cat([cache.ids, ids], dim=1)
        return self._model.next_logits(ids.contiguous(), cache.own, self._head)

    def _with_start_of(self, ids: Tensor) -> StepCache:
        """The cache, cut to what it has of a prompt; the last token is always left to be fed."""
        cache = self._cache
        if cache is None or len(cache.ids) != len(ids):
            cache = self._empty(len(ids))
        else:
            cache.own.truncate(_common_prefix(cache.ids, ids[:, :-1]))
        cache.ids = ids[:, : cache.own.position]
        return cache

    def _empty(self, rows: int) -> StepCache:
        if self._cache is None or self._cache.own.keys.shape[1] != rows:
            self._cache = StepCache(self._lend(rows))
        self._cache.own.truncate(0)
        return self._cache


def _common_prefix(a: Tensor, b: Tensor) -> int:
    """Leading columns in which every row of [B, T] and [B, T'] is equal."""
    width = min(a.shape[1], b.shape[1])
    differ = (a[:, :width] != b[:, :width]).any(0).nonzero()
    return int(differ[0]) if len(differ) else width
