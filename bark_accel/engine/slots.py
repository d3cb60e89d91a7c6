"""Caches whose rows are lent to requests, and steps that several of them share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bark_accel.decoding.graph_capture import Capturer
from bark_accel.decoding.shared_draws import Scores
from bark_accel.decoding.token_source import TokenSource
from bark_accel.transformer.causal import CausalModel, Feed
from bark_accel.transformer.kv_cache import KVCache

from .shared_steps import SharedSteps


class Slots:
    """A row of a key-value cache for each request that decodes; models of one shape share the memory.

    Parameters
    ----------
    models : sequence of CausalModel
        A request uses one after the other.
    count : int
        Requests at once.
    make_capturer : callable
        Makes what captures the shared steps of one model: if that fails, its scratch memory is not another model's.
        None: they run kernel by kernel.
    """

    def __init__(
        self, models: Sequence[CausalModel], count: int, make_capturer: Callable[[], Capturer | None] = lambda: None
    ):
        self.count = count
        self._caches: dict[object, KVCache] = {}
        for model in models:
            if _kind(model) not in self._caches:
                place = model.cache_dtype, model.weights.device
                self._caches[_kind(model)] = KVCache.empty(model.spec, count, *place)
        self._free = list(range(count))  # once there is room for their caches
        self._steps = {id(model): SharedSteps(model, self.cache_of(model), make_capturer()) for model in models}

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self._caches.values())

    def take(self) -> Slot | None:
        """The lowest free slot, so that a step looks at few; None where all are lent."""
        self._free.sort()
        return Slot(self, self._free.pop(0)) if self._free else None

    def give_back(self, slot: Slot) -> None:
        """Lend it to others."""
        self._free.append(slot.index)

    def steps_of(self, model: CausalModel) -> SharedSteps:
        """Steps of a model that slots share."""
        return self._steps[id(model)]

    def cache_of(self, model: CausalModel) -> KVCache:
        """The cache for a model, of all slots."""
        return self._caches[_kind(model)]


@dataclass(frozen=True)
class Slot:
    """One row of each cache."""

    slots: Slots
    index: int

    def cache(self, model: CausalModel) -> KVCache:
        """The row as an empty cache for a model."""
        return self.slots.cache_of(model).row(self.index)

    def give_back(self) -> None:
        self.slots.give_back(self)


@dataclass(frozen=True)
class Step:
    """The next input of a request: what to feed, to which model, into which cache (that of its slot).

    `source` can give the token that follows instead, where drafts are on and this is no prompt.
    """

    slot: Slot
    model: CausalModel
    cache: KVCache
    feed: Feed
    source: TokenSource | None

    def alone(self) -> Tensor:
        """Feed it; scores [1, rows] float32 of what follows."""
        return self.model.logits(self.feed, self.cache)


def take_together(steps: Sequence[Step]) -> Scores:
    """Feed one token of each of several slots to their model at once.

    What a slot gets is, to the bit on a CPU, what it gets alone: scores of what follows, which stand there up to the
    model's next step.
    """
    model, slots = steps[0].model, steps[0].slot.slots
    first, stop = min(s.feed.rows.start for s in steps), max(s.feed.rows.stop for s in steps)
    ids = torch.cat([step.feed.tokens for step in steps])
    logits = slots.steps_of(model).scores([step.slot.index for step in steps], ids, slice(first, stop))
    for step in steps:
        step.cache.position += 1
    return Scores(logits, first)


def _kind(model: CausalModel) -> object:
    spec = model.spec
    shape = (spec.num_layers, spec.num_heads, spec.block_size, spec.head_size)
    return shape, model.cache_dtype, model.weights.device
