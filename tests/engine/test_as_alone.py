"""Every request's tokens and audio are, to the bit, those that it has alone with its seed."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.bark_models import SMALL, build, preset, speaking, texts
from support.engine_requests import Asked, assert_as_alone, together
from support.parity import accelerated_copy
from transformers import AutoProcessor

from bark_accel import RequestCancelled, small_bark_path
from bark_accel.engine import scheduler as scheduling
from bark_accel.patches.engine import ModelSource

# Shorter and longer than what the windows use of a history, and of odd lengths.
VOICES = [None, preset(SMALL, 9, 15, seed=1), preset(SMALL, 60, 91, seed=2), preset(SMALL, 20, 30, seed=3)]
MODELS = {
    "float32": {},
    "float16": {"weights": "float16"},
    "int8": {"weights": "int8"},
    "int8 cache": {"weights": "int8", "kv_cache_dtype": "int8"},
    "drafts, int8 cache": {"kv_cache_dtype": "int8"},
    "no drafts": {"speculate": False},
    "fitting windows": {"fit_windows": True, "long_coarse_windows": True},
}


@functools.cache
def source_of(kind: str):
    """A tiny model and its source."""
    model = accelerated_copy(build(SMALL), **MODELS[kind])
    return model, ModelSource(model)


@st.composite
def requests(draw) -> Asked:
    inputs = texts(SMALL, [draw(st.integers(1, 16))], seed=draw(st.integers(0, 5)))
    inputs["history_prompt"] = VOICES[draw(st.integers(0, 3))]
    inputs["semantic_max_new_tokens"] = draw(st.integers(1, 80))
    options = {
        "do_sample": st.booleans(),
        "semantic_temperature": st.sampled_from([0.3, 0.7, 1.0, 1.3]),
        "coarse_temperature": st.sampled_from([0.5, 1.0]),
        "fine_temperature": st.sampled_from([None, 0.4, 0.9]),
        "semantic_top_k": st.sampled_from([0, 5, 40]),
        "coarse_top_p": st.sampled_from([0.5, 0.95, 1.0]),
        "min_eos_p": st.sampled_from([0.005, 0.02, 0.2]),
        "semantic_min_new_tokens": st.integers(1, 30),
        "repetition_penalty": st.sampled_from([0.8, 1.3]),
        "semantic_bad_words_ids": st.just([[33], [58], [75]]),
        "coarse_begin_suppress_tokens": st.just([*range(100, 140)]),
        "no_repeat_ngram_size": st.just(2),
        "min_p": st.sampled_from([0.02, 0.2]),
    }
    for name in draw(st.sets(st.sampled_from(sorted(options)), max_size=4)):
        inputs[name] = draw(options[name])
    policy = draw(st.sampled_from([None, None, "low_latency", "exact", "preview"]))
    chunks = {"first_chunk_frames": draw(st.integers(1, 40)), "lookahead_frames": draw(st.integers(0, 20))}
    arrives = draw(st.integers(0, 60))
    cancelled = draw(st.none() | st.none() | st.integers(0, 150))
    return Asked(inputs, draw(st.integers(0, 3)), policy, {} if policy is None else chunks, arrives, cancelled)


@pytest.mark.parametrize("kind", MODELS)
@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(asked=st.lists(requests(), min_size=1, max_size=6), max_rows=st.integers(1, 4))
def test_mixes(kind, asked, max_rows):
    model, source = source_of(kind)
    for one, request in zip(asked, together(source, asked, max_rows), strict=True):
        if one.cancelled is not None and isinstance(request._future.exception(0), RequestCancelled):
            continue
        assert_as_alone(model, one, request)


def test_a_row_is_alone_by_turns(monkeypatch):
    """It drafts, and others join in the middle of a round: the random state after is its own, too."""
    model, source = source_of("float32")
    prepare, take_together, generators, joined = source.prepare, scheduling.take_together, [], []

    def noting_generator(*arguments):
        generators.append(arguments[-1])
        return prepare(*arguments)

    def noting_steps(steps):
        joined.append((len(steps), steps[0].source is not None))
        return take_together(steps)

    monkeypatch.setattr(source, "prepare", noting_generator)
    monkeypatch.setattr(scheduling, "take_together", noting_steps)
    wrong = itertools.cycle([False, False, False, True])
    for draft in (source._models.semantic_draft, source._models.coarse_draft):
        decode = draft.model.decode
        sometimes_wrong = lambda *fed, decode=decode: decode(*fed).flip(-1) if next(wrong) else decode(*fed)  # noqa: E731
        monkeypatch.setattr(draft.model, "decode", sometimes_wrong)
    counts = [source._patches.semantic.draft_counts, source._patches.coarse.draft_counts]
    before = [replace(each) for each in counts]
    inputs = {**texts(SMALL, [5]), "do_sample": True, "semantic_min_new_tokens": 75, "semantic_max_new_tokens": 75}
    short = {**texts(SMALL, [3]), "do_sample": True, "semantic_max_new_tokens": 4}
    # Three draft, each by itself; the fourth that comes has them share their steps.
    asked = [Asked(inputs), *(Asked(short, seed, arrives=23 * ((seed + 2) // 3)) for seed in range(1, 37))]
    made = together(source, asked, 4)
    assert (1, True) in joined, "nobody joined in the middle of a round"
    assert max(joined)[0] > 1, "no step was shared"
    for was, now in zip(before, counts, strict=True):
        drafted, accepted = now.drafted_tokens - was.drafted_tokens, now.accepted_tokens - was.accepted_tokens
        assert drafted > accepted > 0
    for one, request, generator in zip(asked, made, generators, strict=True):
        assert_as_alone(model, one, request)
        assert generator.get_state().equal(torch.get_rng_state())


def test_more_rows_than_one_pass_takes(two_threads):
    model, source = source_of("float32")
    asked = [
        Asked({**texts(SMALL, [1 + i % 9], seed=i), "semantic_max_new_tokens": 10 + 7 * (i % 9)}, seed=i)
        for i in range(20)
    ]
    for one, request in zip(asked, together(source, asked, 20), strict=True):
        assert_as_alone(model, one, request)


@pytest.mark.parametrize("kind, drafting", [("float32", 3), ("float16", 1), ("int8", 0)])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_few_rows_draft_and_more_share_their_steps(kind, drafting, count, monkeypatch):
    model, source = source_of(kind)
    take_together, rows = scheduling.take_together, []
    monkeypatch.setattr(scheduling, "take_together", lambda steps: rows.append(len(steps)) or take_together(steps))
    length = {"semantic_min_new_tokens": 40, "semantic_max_new_tokens": 40}
    asked = [Asked({**texts(SMALL, [5]), **length}, seed) for seed in range(count)]
    made = together(source, asked, count)
    # The first steps of a stage and of its windows have no drafts.
    assert rows.count(count) < 10 if count <= drafting else rows.count(count) > 40
    for one, request in zip(asked, made, strict=True):
        assert_as_alone(model, one, request)


@pytest.mark.parametrize("weights", ["same", "float16", "int8"])
def test_the_trained_model(two_threads, weights):
    model, processor = accelerated_copy(speaking(), weights=weights), AutoProcessor.from_pretrained(small_bark_path())
    asked = [
        Asked(dict(processor("four seven")), seed=1),
        Asked(dict(processor("nine", voice_preset="slt")), seed=2, policy="low_latency", arrives=9),
        Asked(dict(processor("six two", voice_preset="rms")), seed=3, policy="preview", arrives=20),
        Asked(dict(processor("eight")), seed=4, policy="exact", arrives=30),
    ]
    for one, request in zip(asked, together(ModelSource(model), asked, 3), strict=True):
        assert_as_alone(model, one, request)


@pytest.mark.parametrize("voice", [0, 2])
def test_every_policy_over_several_fine_windows(voice):
    model, source = source_of("float32")
    inputs = {**texts(SMALL, [5]), "semantic_min_new_tokens": 85, "fine_temperature": 0.8, "coarse_temperature": 0.9}
    inputs["history_prompt"] = VOICES[voice]
    policies = [None, "exact", "low_latency", "preview"]
    asked = [Asked(inputs, seed, policy) for seed, policy in enumerate(policies)]
    for one, request in zip(asked, together(source, asked, 4), strict=True):
        assert_as_alone(model, one, request)
