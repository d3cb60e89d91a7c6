"""Rows of one step are drawn for together, each from its own generator."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from support.bark_models import SMALL, texts
from support.engine_requests import Asked, assert_as_alone, together

from bark_accel.decoding.sampling import Sampler, SamplingConfig, TokenRange
from bark_accel.decoding.shared_draws import Draw, Scores, SharedDraws
from bark_accel.engine import scheduler as scheduling
from bark_accel.engine.engine import make_row
from bark_accel.engine.scheduler import Scheduler
from bark_accel.engine.slots import Slots
from bark_accel.ops import multinomial
from bark_accel.ops.backend import get_ops
from bark_accel.patches.engine import ModelSource

SAMPLED = {**texts(SMALL, [6]), "do_sample": True, "semantic_min_new_tokens": 30, "semantic_max_new_tokens": 30}
# What the op for several rows does not have.
OTHERS = [{"do_sample": False}, {"repetition_penalty": 1.3}, {"min_p": 0.1}]


@pytest.fixture
def drawn(monkeypatch):
    """Rows that were drawn for together, of each step."""
    counts, draw = [], SharedDraws.draw

    def noting(self, draws, scores):
        tokens = draw(self, draws, scores)
        counts.append(sum(token is not None for token in tokens))
        return tokens

    monkeypatch.setattr(SharedDraws, "draw", noting)
    return counts


def test_sampled_rows_are_drawn_for_together(fast, drawn):
    asked = [Asked({**SAMPLED, "semantic_temperature": 0.5 + seed / 4}, seed) for seed in range(5)]
    for one, request in zip(asked, together(ModelSource(fast), asked, 5), strict=True):
        assert_as_alone(fast, one, request)
    assert drawn.count(5) > 100


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: next(iter(other)))
def test_others_among_them_are_drawn_for_alone(fast, drawn, other):
    asked = [Asked({**SAMPLED, **(other if seed in (1, 3) else {})}, seed) for seed in range(6)]
    for one, request in zip(asked, together(ModelSource(fast), asked, 6), strict=True):
        assert_as_alone(fast, one, request)
    assert max(drawn) == 4 and drawn.count(4) > 100


def test_rows_that_renormalise_and_rows_that_do_not(fast, drawn):
    """Two groups, whoever comes first."""
    asked = [Asked({**SAMPLED, "renormalize_logits": seed in (0, 3)}, seed) for seed in range(6)]
    for one, request in zip(asked, together(ModelSource(fast), asked, 6), strict=True):
        assert_as_alone(fast, one, request)
    assert drawn.count(6) > 100


@pytest.mark.parametrize("fault", [MemoryError, RuntimeError])
def test_whatever_fails_in_the_shared_draw_ends_nobody(fast, monkeypatch, fault):
    drawn, calls = SharedDraws._drawn, []

    def failing(self, *given):
        calls.append(None)
        if len(calls) % 7 == 0:
            raise fault
        return drawn(self, *given)

    monkeypatch.setattr(SharedDraws, "_drawn", failing)
    asked = [Asked(SAMPLED, seed) for seed in range(4)]
    for one, request in zip(asked, together(ModelSource(fast), asked, 4), strict=True):
        assert_as_alone(fast, one, request)
    assert len(calls) > 50


def test_equal_options_have_the_same_rules():
    """And an object whose id stands for its options is kept, so that the id is nobody else's."""
    draws = SharedDraws(50, get_ops("native", torch.device("cpu")))

    def rules_of_new_rows():
        rows = tuple((SamplingConfig(True, 1, temperature=0.5 + row), TokenRange(0, 9 + row)) for row in range(3))
        return draws._rules_of(rows, torch.device("cpu"))

    assert len({id(rules_of_new_rows()) for _ in range(5)}) == 1 and len(draws._rules) == 1
    for key, (_, kept) in draws._of_ids.items():
        assert key == tuple(id(part) for row in kept for part in row)


def test_kept_rules_keep_no_request(fast):
    """They are kept by what is asked for, which others may ask for as well."""
    source = ModelSource(fast)
    scheduler = Scheduler(source.models, Slots(source.models, 5))
    rows = [make_row(source, SAMPLED, seed=seed) for seed in range(5)]
    for row in rows:
        scheduler.add(row)
    with torch.no_grad():
        scheduler.turn()
        samplers = [weakref.ref(row.next_draw.sampler) for row in rows]
        while scheduler.busy:
            scheduler.turn()
    del rows, row
    gc.collect()
    assert [each() for each in samplers] == [None] * 5
    assert any(draws._rules for draws in scheduler._draws.values())


@pytest.mark.parametrize("noise", ["where it decides", "in full"])
def test_a_row_that_cannot_be_drawn_from_ends_alone(fast, monkeypatch, noise):
    monkeypatch.setattr(multinomial, "_wanted", noise == "where it decides")
    take_together, steps_taken = scheduling.take_together, []

    def spoil(steps):
        scores = take_together(steps)
        steps_taken.append(len(steps))
        if len(steps_taken) == 9:
            scores.logits[2] = torch.nan
        return scores

    monkeypatch.setattr(scheduling, "take_together", spoil)
    asked = [Asked(SAMPLED, seed) for seed in range(5)]
    made = together(ModelSource(fast), asked, 5)
    assert steps_taken[8] == 5
    with pytest.raises(ValueError, match=r"semantic stage of the Bark model: .* without NaN"):
        made[2].result(0)
    for i in (0, 1, 3, 4):
        assert_as_alone(fast, asked[i], made[i])


def test_rules_are_kept_for_few_sets_of_rows(monkeypatch):
    monkeypatch.setattr("bark_accel.decoding.shared_draws._KEPT", 3)
    ops = get_ops("native", torch.device("cpu"))
    samplers = [Sampler(SamplingConfig(True, 1, top_k=1 + i), 64, ops) for i in range(6)]
    for seed, sampler in enumerate(samplers):
        sampler.generator = torch.Generator().manual_seed(seed)
    draws, scores = SharedDraws(64, ops), Scores(torch.randn(2, 64), 0)
    for i in (0, 1, 2, 3, 4, 0):
        pair = [Draw(sampler, TokenRange(0, 64)) for sampler in samplers[i : i + 2]]
        states = [sampler.generator.get_state() for sampler in samplers[i : i + 2]]
        tokens = draws.draw(pair, scores)
        for place, (sampler, state) in enumerate(zip(samplers[i : i + 2], states, strict=True)):
            after = sampler.generator.get_state()
            sampler.generator.set_state(state)
            assert sampler.draw(scores.of(place, slice(0, 64)), TokenRange(0, 64)).equal(tokens[place])
            assert sampler.generator.get_state().equal(after)
        assert len(draws._rules) <= 3
