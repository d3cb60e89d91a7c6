"""Exact self-speculation: an int8 copy of the model drafts tokens, the model itself verifies them in one pass.

Draft and verification draw with the same random numbers, so a draft is wrong only where the int8 scores lead to another
token than the model's own; every token that comes out was drawn from the model's own scores, in order, and the
generator ends where it would without drafts. After Leviathan, Kalman and Matias, "Fast Inference from Transformers via
Speculative Decoding" (2023), with shared noise in place of their rejection sampling.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bark_accel.report import DraftCounts
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCache
from bark_accel.transformer.kv_copy import KVCopy

from .rng import default_generator
from .sampling import Sampler, TokenRange

MAX_DRAFT_TOKENS = 7


@dataclass
class Draft:
    """The int8 model that drafts for another one, and how it fared."""

    model: CausalModel
    counts: DraftCounts


@dataclass(frozen=True)
class Verified:
    """The model's own logits [1, rows] of one token, and the token [1, 1] that was drafted there, if any was."""

    logits: Tensor
    drafted: Tensor | None


@dataclass
class Speculation:
    """A `TokenSource` for one row.

    The two models share the cache, and verification overwrites what a draft wrote; or the draft reads an int8 copy.

    A token is drawn from verified logits when it is asked for, so that whoever is called in a draw is called as often
    and in the same order as without drafts.
    """

    model: CausalModel
    draft: Draft
    _ahead: deque[Verified] = field(default_factory=deque)
    _length: int = MAX_DRAFT_TOKENS
    _drafted: int = 0
    _accepted: int = 0
    _generator: torch.Generator | None = None
    _copy: KVCopy | None = None

    @property
    def ahead(self) -> bool:
        """See `TokenSource`; where not, the cache is as a step without drafts leaves it."""
        return bool(self._ahead)

    def forget(self, cache: KVCache) -> None:
        """See `TokenSource`."""
        self._ahead.clear()

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
        verified = self._ahead.popleft()
        cache.truncate(cache.position + 1)
        token = sampler.draw(verified.logits, allowed(0))
        self._judge(token, verified.drafted, sampler.config.stop_tokens)
        return token

    def _round(
        self, last: Tensor, cache: KVCache, sampler: Sampler, allowed: Callable[[int], TokenRange], limit: int
    ) -> list[Verified]:
        """Draft, and compute the model's own logits of each draft and of one token more; the cache stays as it is."""
        start = cache.position
        with sampler.rewound():
            fed = self._draft_tokens(last, self._draft_cache(cache), sampler, allowed, min(self._length, limit - 1))
        cache.truncate(start)
        needed = [sampler.head_rows(allowed(i)) for i in range(len(fed))]
        first = min(rows.start for rows in needed)
        logits = self.model.decode(torch.cat(fed, 1), cache, slice(first, max(rows.stop for rows in needed)))
        cache.truncate(start)
        self._drafted, self._accepted = len(fed) - 1, 0
        self.draft.counts.rounds += 1
        self.draft.counts.drafted_tokens += self._drafted
        parts = [logits[:, i, rows.start - first : rows.stop - first] for i, rows in enumerate(needed)]
        return [Verified(part, drafted) for part, drafted in zip(parts, [*fed[1:], None], strict=True)]

    def _draft_cache(self, cache: KVCache) -> KVCache:
        """The cache that drafts are made with."""
        model = self.draft.model
        if model.cache_dtype == cache.dtype or model.cache_dtype != torch.int8:
            return cache
        if self._copy is None:
            self._copy = KVCopy(model.spec, model.cache_dtype, cache.length.device)
        return self._copy.of(cache)

    def _judge(self, token: Tensor, drafted: Tensor | None, stops: Sequence[int]) -> None:
        """Count a draft that was right; forget what follows a wrong one."""
        if drafted is not None and int(token) == int(drafted):
            self._accepted += 1
            self.draft.counts.accepted_tokens += 1
            if int(token) not in stops:
                return
        self._ahead.clear()
        # Long drafts only pay while they are right; one wrong token is often alone.
        right = self._accepted >= self._drafted
        longest = 2 * self._length if right else max(self._length // 2, self._accepted + 1)
        self._length = min(longest, MAX_DRAFT_TOKENS)

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
            rows = sampler.head_rows(allowed(i), draft=True)
            logits = self.draft.model.decode(fed[-1], cache, rows)[:, -1]
            try:
                fed.append(sampler.draw(logits, allowed(i), self._generator, draft=True)[:, None])
            except (ValueError, RuntimeError):
                break  # after wrong tokens, processors may leave none
            if int(fed[-1]) in sampler.config.stop_tokens:
                break
        return fed
