"""Generations whose tokens Transformers' objects or its own loop choose from our logits: stock's, and no fallback."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.bark_models import SMALL, preset, texts
from support.callers_processors import Seen
from support.parity import accelerated_copy, assert_equal_to_stock, run
from support.stock_limits import skip_where_stock_fails
from transformers import LogitsProcessorList
from transformers.generation.stopping_criteria import (
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
)

from bark_accel import AccelerationError, FallbackKind, acceleration_report, stream
from bark_accel.transformer.causal import CausalModel

INPUTS = texts(SMALL, [4, 9])
SHORT = {"semantic_max_new_tokens": 30}
SAMPLED = {"do_sample": True, "fine_temperature": 0.7}
KINDS = FallbackKind


class StopsAt(StoppingCriteria):
    """Ends every row after so many tokens in all."""

    def __init__(self, length: int):
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length, device=input_ids.device)


CASES = {
    "beams": ({"semantic_num_beams": 3}, "semantic", KINDS.GENERATION_MODE),
    "coarse beams": ({"coarse_num_beams": 2}, "coarse", KINDS.GENERATION_MODE),
    "sampled beams": ({**SAMPLED, "coarse_num_beams": 2}, "coarse", KINDS.GENERATION_MODE),
    "min_p": ({**SAMPLED, "semantic_min_p": 0.05}, "semantic", KINDS.LOGITS_PROCESSOR),
    "typical_p": ({**SAMPLED, "coarse_typical_p": 0.9}, "coarse", KINDS.LOGITS_PROCESSOR),
    "epsilon_cutoff": ({**SAMPLED, "epsilon_cutoff": 0.01}, "semantic", KINDS.LOGITS_PROCESSOR),
    "eta_cutoff": ({**SAMPLED, "eta_cutoff": 0.01}, "coarse", KINDS.LOGITS_PROCESSOR),
    "no_repeat_ngram_size": ({"semantic_no_repeat_ngram_size": 2}, "semantic", KINDS.LOGITS_PROCESSOR),
    "bad_words_ids": ({"semantic_bad_words_ids": [[33], [75, 52]]}, "semantic", KINDS.LOGITS_PROCESSOR),
    "sequence_bias": ({"semantic_sequence_bias": [[[33, 4], 4.0]]}, "semantic", KINDS.LOGITS_PROCESSOR),
    "max_time": ({"semantic_max_time": 60.0}, "semantic", KINDS.STOPPING_CRITERIA),
    "stopping criteria": (
        {"semantic_stopping_criteria": StoppingCriteriaList([MaxTimeCriteria(60.0), StopsAt(60)])},
        "semantic",
        KINDS.STOPPING_CRITERIA,
    ),
    "allowed tokens": (
        {"semantic_prefix_allowed_tokens_fn": lambda row, ids: list(range(0, 90, 1 + row))},
        "semantic",
        KINDS.LOGITS_PROCESSOR,
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_stock(small_model, case):
    options, stage, kind = case
    if "semantic_num_beams" in options:
        skip_where_stock_fails("beams")
    fast = accelerated_copy(small_model)
    assert_equal_to_stock(small_model, fast, **INPUTS, **SHORT, **options)
    report = acceleration_report(fast)
    assert (stage, kind) in {(r.stage, r.kind) for r in report.token_choices} and report.fallbacks == ()


@pytest.mark.parametrize("voice", ["none", "one", "each"])
def test_with_voices(small_model, voice):
    """A coarse prompt that extends the one before feeds only what is new; with a full voice it never does."""
    voices = [preset(SMALL, 40, 60, seed=2), preset(SMALL, 12, 20, seed=1)]
    fast = accelerated_copy(small_model)
    if voice == "each":
        got = run(fast, 0, **INPUTS, **SHORT, coarse_no_repeat_ngram_size=3, history_prompt=voices)[0]
        for row, history in enumerate(voices):
            alone = {name: part[row : row + 1] for name, part in INPUTS.items()}
            expected = run(small_model, 0, **alone, **SHORT, coarse_no_repeat_ngram_size=3, history_prompt=history)[0]
            width = expected["coarse"].shape[1]
            assert torch.equal(got["coarse"][row, :width], expected["coarse"][0])
        return
    history = voices[0] if voice == "one" else None
    assert_equal_to_stock(small_model, fast, **INPUTS, **SHORT, no_repeat_ngram_size=3, history_prompt=history)


@pytest.mark.parametrize(
    "options, stage, kind",
    [
        ({"semantic_guidance_scale": 1.5}, "semantic", KINDS.LOGITS_PROCESSOR),
        ({"coarse_guidance_scale": 2.5}, "coarse", KINDS.LOGITS_PROCESSOR),
        ({"coarse_pad_token_id": 75, "coarse_no_repeat_ngram_size": 3}, "coarse", KINDS.TOKEN_LAYOUT),
    ],
    ids=["guidance", "coarse guidance", "a pad token in the prompt"],
)
def test_what_needs_more_than_a_step_runs_stocks_model(small_model, options, stage, kind):
    """A processor that calls the model itself; a pad token, which could mask a part of the prompt."""
    fast = accelerated_copy(small_model, strict=False)
    assert_equal_to_stock(small_model, fast, **INPUTS, **SHORT, **options)
    report = acceleration_report(fast)
    assert (stage, kind) in {(r.stage, r.kind) for r in report.fallbacks}
    with pytest.raises(AccelerationError):
        accelerated_copy(small_model).generate(**INPUTS, **SHORT, **options)


@pytest.mark.parametrize("stage", ["semantic", "coarse"])
def test_a_streams_processor_is_called_over_our_steps(small_model, stage):
    """Transformers' `BarkModel.generate` itself cannot take one; strict: it is no fallback."""
    fast, seen = accelerated_copy(small_model), Seen()
    assert list(stream(fast, **INPUTS, **SHORT, **{f"{stage}_logits_processor": [seen]}))
    vocabulary = getattr(fast, {"semantic": "semantic", "coarse": "coarse_acoustics"}[stage]).config.output_vocab_size
    assert seen.calls and all(scores.shape == (2, vocabulary) for _, scores in seen.calls)
    assert [(r.stage, r.kind) for r in acceleration_report(fast).token_choices] == [(stage, KINDS.LOGITS_PROCESSOR)]


def test_prompts_feed_only_what_the_cache_lacks(small_model, monkeypatch):
    """Without a voice, a window of the coarse stage begins with the tokens of the one before."""
    fed: list[int] = []
    real = CausalModel.next_logits

    def next_logits(self, ids, cache, rows):
        fed.append(ids.shape[1])
        return real(self, ids, cache, rows)

    monkeypatch.setattr(CausalModel, "next_logits", next_logits)
    fast = accelerated_copy(small_model)
    tokens = run(fast, 0, **INPUTS, **SHORT, coarse_no_repeat_ngram_size=3, semantic_min_p=0.01)[0]["coarse"]
    windows = -(-tokens.shape[1] // 24)
    assert windows > 2 and sum(length > 24 for length in fed) < windows


def test_several_of_each(small_model):
    """Transformers gives as many rows, which stock's coarse stage then takes as a batch."""
    fast = accelerated_copy(small_model)
    options = {**SAMPLED, "semantic_num_return_sequences": 3, **SHORT}
    assert_equal_to_stock(small_model, fast, **INPUTS, **options)


@pytest.mark.parametrize("stage", ["semantic", "coarse"])
def test_a_switch_that_is_off(small_model, stage):
    """Of `generate`, no field of the config."""
    options = {**INPUTS, **SHORT, **SAMPLED, f"{stage}_synced_gpus": False}
    assert_equal_to_stock(small_model, accelerated_copy(small_model), **options)


def test_a_processor_sees_what_it_sees_in_stock(small_model):
    """Ids and scores of the whole vocabulary. Bark's stages take one only through `generate` of Transformers itself."""
    seen = [Seen(), Seen()]
    fast = accelerated_copy(small_model)
    ids = torch.randint(0, 90, (2, 20), generator=torch.Generator().manual_seed(0))
    from bark_accel.patches.step_view import step_view

    patch = fast.coarse_acoustics.generate.__self__
    weights = patch.weights()
    model = patch.model(weights)
    place = (model.weights.cache_dtype, weights.device)

    def borrow(rows):
        return patch.settings.pool.borrow(model.spec, rows, *place)

    options = {"max_new_tokens": 12, "do_sample": True, "output_scores": True, "output_logits": True}
    options["return_dict_in_generate"] = True
    torch.manual_seed(0)
    generate = super(type(small_model.coarse_acoustics), small_model.coarse_acoustics).generate
    expected = generate(ids, logits_processor=LogitsProcessorList([seen[0]]), **options)
    with step_view(fast.coarse_acoustics, model, borrow) as view:
        torch.manual_seed(0)
        got = super(type(view), view).generate(ids, logits_processor=LogitsProcessorList([seen[1]]), **options)
        assert torch.equal(got.sequences, expected.sequences)
        for name in ("scores", "logits"):
            torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-5)
    for (ids_a, scores_a), (ids_b, scores_b) in zip(*(s.calls for s in seen), strict=True):
        assert torch.equal(ids_a, ids_b)
        torch.testing.assert_close(scores_b, scores_a, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", ["float16", "int8"])
def test_smaller_and_released_weights(small_model, weights):
    """Deterministic, the same with and without the model's own weights, and other tokens than without the penalty."""
    options = {**INPUTS, **SHORT, "repetition_penalty": 1.5}
    fast = accelerated_copy(small_model, weights=weights)
    released = accelerated_copy(small_model, weights=weights, release_originals=True)
    tokens = run(fast, 0, **options)[0]["semantic"]
    assert torch.equal(run(released, 0, **options)[0]["semantic"], tokens)
    plain = run(fast, 0, **INPUTS, **SHORT)[0]["semantic"]
    assert not torch.equal(plain[:, : tokens.shape[1]], tokens[:, : plain.shape[1]])


class TestMinNewTokens:
    """Part of our own loop: the end of speech is no candidate before so many tokens."""

    @pytest.fixture
    def ends_early(self):
        """Ends a text after few tokens, where it may."""
        return {**INPUTS, **SAMPLED, "min_eos_p": 0.004}

    @pytest.mark.parametrize("speculate", [None, False])
    @pytest.mark.parametrize("option", [{"semantic_min_new_tokens": 40}, {"semantic_min_length": 150}])
    def test_equals_stock(self, small_model, ends_early, option, speculate):
        fast = accelerated_copy(small_model, speculate=speculate)
        plain = run(small_model, 0, **ends_early)[0]["semantic"]
        got = assert_equal_to_stock(small_model, fast, **ends_early, **option)["semantic"]
        report = acceleration_report(fast)
        assert got.shape[1] > plain.shape[1] and report.token_choices == report.fallbacks == ()

    def test_one_row_with_drafts(self, small_model, ends_early):
        alone = {**ends_early, **{name: part[:1] for name, part in INPUTS.items()}}
        fast = accelerated_copy(small_model, speculate=True)
        assert_equal_to_stock(small_model, fast, **alone, semantic_min_new_tokens=35)
        assert acceleration_report(fast).stages[0].drafts.drafted_tokens > 0
