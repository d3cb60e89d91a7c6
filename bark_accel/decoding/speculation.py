"""Exact self-speculation: an int8 copy of the model drafts tokens, the model itself verifies them in one pass.

Draft and verification draw with the same random numbers, so a draft is wrong only where the int8 scores lead to another
token than the model's own; every token that comes out was drawn from the model's own scores, in order, and the
generator ends where it would without drafts. After Leviathan, Kalman and Matias, "Fast Inference from Transformers via
Speculative Decoding" (2023), with shared noise in place of their rejection sampling.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bark_accel.report import DraftCounts
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCache

from .rng import default_generator
from .sampling import Sampler, TokenRange

MAX_DRAFT_TOKENS = 7


@dataclass
class Draft:
    """The int8 model that drafts for another one, and how it fared."""

    model: CausalModel
    counts: DraftCounts


@dataclass
class Speculation:
    """A `TokenSource` for one row. The two models share the cache: verification overwrites what a draft wrote."""

    model: CausalModel
    draft: Draft
    _ahead: deque[Tensor] = field(default_factory=deque)
    _length: int = MAX_DRAFT_TOKENS
    _generator: torch.Generator | None = None

    def next_token(
        self,
        last: Tensor,
        cache: KVCache,
        sampler: Sampler,
        allowed: Callable[[int], TokenRange],
        limit: int,
    ) -> Tensor:
        """See `TokenSource`."""
        if not self._ahead:
            limit = min(limit, cache.capacity - cache.position)
            last = last.to(cache.length.device)
            self._ahead.extend(self._round(last[:, None], cache, sampler, allowed, limit))
        return self._ahead.popleft()

    def _round(
        self, last: Tensor, cache: KVCache, sampler: Sampler, allowed: Callable[[int], TokenRange], limit: int
    ) -> list[Tensor]:
        start, stops = cache.position, sampler.config.stop_tokens
        with sampler.editor.rewound():
            fed = self._draft_tokens(last, cache, sampler, allowed, min(self._length, limit - 1))
        cache.truncate(start)
        ranges = [allowed(i) for i in range(len(fed))]
        first = min(r.head_rows.start for r in ranges)
        logits = self.model.decode(torch.cat(fed, 1), cache, slice(first, max(r.head_rows.stop for r in ranges)))
        tokens: list[Tensor] = []
        accepted = 0
        for i, r in enumerate(ranges):
            rows = slice(r.head_rows.start - first, r.head_rows.stop - first)
            tokens.append(sampler.draw(logits[:, i, rows], r))
            token = int(tokens[-1])
            right = i + 1 < len(fed) and token == int(fed[i + 1])
            accepted += right
            if token in stops or not right:
                break
        cache.truncate(start + len(tokens))
        self._count(len(fed) - 1, accepted)
        return tokens

    def _draft_tokens(
        self, last: Tensor, cache: KVCache, sampler: Sampler, allowed: Callable[[int], TokenRange], count: int
    ) -> list[Tensor]:
        """`last` and up to `count` drafts, [1, 1] each."""
        if sampler.config.do_sample:
            source = sampler.generator or default_generator(last.device)
            if self._generator is None:
                self._generator = torch.Generator(source.device)
            self._generator.set_state(source.get_state())
        fed = [last]
        for i in range(count):
            logits = self.draft.model.decode(fed[-1], cache, allowed(i).head_rows)[:, -1]
            fed.append(sampler.draw(logits, allowed(i), self._generator)[:, None])
            if int(fed[-1]) in sampler.config.stop_tokens:
                break
        return fed

    def _count(self, drafted: int, accepted: int) -> None:
        counts = self.draft.counts
        counts.rounds += 1
        counts.drafted_tokens += drafted
        counts.accepted_tokens += accepted
        # Long drafts only pay while they are right.
        right = accepted >= drafted
        self._length = min(2 * self._length, MAX_DRAFT_TOKENS) if right else accepted + 1
