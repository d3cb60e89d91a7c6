"""Draws of several generations at once, each from its own generator."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from bark_accel.ops.backend import Ops

from .sampling import Sampler, SampleRules, SamplingConfig, TokenRange

logger = logging.getLogger("bark_accel")

Rows = tuple[tuple[SamplingConfig, TokenRange], ...]
"""Options of each row, and the ids that it may have."""
K = TypeVar("K")
V = TypeVar("V")

# Sets of rows whose rules are kept.
_KEPT = 64


@dataclass(frozen=True)
class Draw:
    """Whose token is drawn, and of which ids."""

    sampler: Sampler
    allowed: TokenRange


@dataclass(frozen=True)
class Scores:
    """Scores of what several generations are to draw: logits [N, L] float32 of the ids from `first_id` on."""

    logits: Tensor
    first_id: int

    def of(self, row: int, ids: slice) -> Tensor:
        """Scores [1, ids] of one of them."""
        return self.logits[row : row + 1, ids.start - self.first_id : ids.stop - self.first_id]


class SharedDraws:
    """Draws by one op for generations that have nothing but scores, rules and a generator each.

    On a CPU the op divides the rows among threads; on a GPU it is one kernel beside the noise.
    """

    def __init__(self, vocab_size: int, ops: Ops):
        self._vocab_size, self._ops = vocab_size, ops
        self._rules: dict[Rows, SampleRules] = {}
        self._of_ids: dict[tuple[int, ...], tuple[SampleRules, Rows]] = {}

    def draw(self, draws: Sequence[Draw], scores: Scores) -> list[Tensor | None]:
        """Return for each of N draws the token [1] int64 that its sampler would draw alone, or None.

        Waits for no device: there, a token that could not be drawn is negative (`ops.sample_checks.raise_bad_rows`).
        None stands for a sampler that has to draw by itself, and for all that would share an op that fails: no
        generator has moved then, and the row that is the cause says so when it draws by itself.
        """
        tokens: list[Tensor | None] = [None] * len(draws)
        for places in _groups(draws):
            parts = [scores.logits[place : place + 1] for place in places]
            logits = scores.logits if len(places) == len(draws) else torch.cat(parts)
            try:
                drawn = self._drawn([draws[place] for place in places], logits, scores.first_id)
            except ValueError:
                continue
            except Exception:
                logger.warning("bark_accel: a shared draw failed; its rows draw one by one", exc_info=True)
                continue
            for place, token in zip(places, drawn.split(1), strict=True):
                tokens[place] = token
        return tokens

    def _drawn(self, draws: Sequence[Draw], logits: Tensor, first_id: int) -> Tensor:
        """Token ids [N] int64 from logits [N, L] of the ids from `first_id` on."""
        rules = self._rules_of(tuple((draw.sampler.config, draw.allowed) for draw in draws), logits.device)
        logits = logits[:, rules.first_id - first_id :]
        generators = [draw.sampler.generator for draw in draws]
        return self._ops.fused_multinomial(logits, generators, self._vocab_size, *rules.arguments, checked=False)

    def _rules_of(self, rows: Rows, device: torch.device) -> SampleRules:
        """Find or make the rules of rows: those of the very objects of before without hashing their options."""
        key = tuple(id(part) for row in rows for part in row)
        if key not in self._of_ids:
            # With the rows, so that no other object has one of these ids.
            _keep(self._of_ids, key, (self._equal_rules(rows, device), rows))
        return self._of_ids[key][0]

    def _equal_rules(self, rows: Rows, device: torch.device) -> SampleRules:
        if rows not in self._rules:
            _keep(self._rules, rows, SampleRules.of(rows, device))
        return self._rules[rows]


def _keep(kept: dict[K, V], key: K, value: V) -> None:
    if len(kept) == _KEPT:
        kept.clear()
    kept[key] = value


def _groups(draws: Sequence[Draw]) -> list[list[int]]:
    """Places of draws that one op can make: they differ in nothing but what it takes for each row."""
    groups: dict[bool, list[int]] = {}
    for place, draw in enumerate(draws):
        if draw.sampler.shares_draws:
            groups.setdefault(draw.sampler.config.renormalize, []).append(place)
    return [places for places in groups.values() if len(places) > 1]
