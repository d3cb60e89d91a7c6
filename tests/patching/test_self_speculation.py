"""Self-speculation on a patched model: stock's tokens and random state, whatever the drafts are worth."""

from __future__ import annotations

import copy
import functools
import threading

import pytest
import torch
from support.bark_models import SMALL, build, preset, stage_configs, texts
from support.parity import accelerated_copy, assert_equal_to_stock, assert_same_tokens
from support.waiting import LIMIT_S

from bark_accel import AudioStreamer, accelerate_bark, acceleration_report, stream
from bark_accel.decoding.speculation import Draft
from bark_accel.hf.transformer import transformer_spec, transformer_weights
from bark_accel.patches.request import stage_arguments
from bark_accel.patches.stage_patch import CausalPatch
from bark_accel.report import DraftCounts
from bark_accel.stages.coarse import CoarseStage
from bark_accel.stages.semantic import SemanticStage
from bark_accel.transformer.causal import CausalModel

ONE = texts(SMALL, [6])
SAMPLED = {"do_sample": True}
OPTIONS = {
    "greedy": {},
    "sampled": {**SAMPLED, "temperature": 0.9},
    "top_p": {**SAMPLED, "top_p": 0.8, "top_k": 0},
    "min_eos_p": {**SAMPLED, "semantic_min_eos_p": 0.03},
    "one stage sampled": {"coarse_do_sample": True},
}
HISTORIES = [None, preset(SMALL, 12, 20), preset(SMALL, 40, 60)]
DRAFTS = ["int8", "the model itself", "another model"]


def causal_stages(model, seed, history=None, max_new_tokens=45, **options):
    """Semantic and coarse tokens and the generator's end state, by the sub-models' own `generate`."""
    configs = stage_configs(model)
    del configs["fine_generation_config"]
    semantic_options, coarse_options = (stage_arguments(options, stage) for stage in ("semantic", "coarse"))
    torch.manual_seed(seed)
    semantic = model.semantic.generate(
        ONE["input_ids"],
        configs["semantic_generation_config"],
        history,
        ONE["attention_mask"],
        max_new_tokens=max_new_tokens,
        **{"min_eos_p": None, **semantic_options},
    )
    coarse = model.coarse_acoustics.generate(
        semantic.clone(), **configs, codebook_size=SMALL.codebook_size, history_prompt=history, **coarse_options
    )
    return semantic, coarse, torch.get_rng_state()


def assert_same(got, expected):
    for stage, ours, stocks in zip(("semantic", "coarse"), got, expected, strict=False):
        assert_same_tokens(stage, stocks, ours)
    assert torch.equal(got[2], expected[2]), "the generators end in different states"


@pytest.fixture(scope="module")
def stock():
    """Ends some utterances early."""
    model = build(SMALL, seed=17)
    with torch.no_grad():
        model.semantic.lm_head.weight[SMALL.semantic_vocab] *= 2
    return model


@pytest.fixture(scope="module")
def stocks_own(stock):
    """`causal_stages` of stock, each computed once."""
    return functools.cache(lambda seed, name: causal_stages(stock, seed, HISTORIES[seed % 3], **OPTIONS[name]))


@pytest.fixture(scope="module")
def stranger():
    return build(SMALL, seed=8)


def counts_of(model):
    return [m.generate.__self__.draft_counts for m in (model.semantic, model.coarse_acoustics)]


@pytest.fixture
def drafts(request, monkeypatch, stranger):
    """Drafts by another model than the int8 copy."""
    if request.param == "int8":
        return request.param

    def draft(patch, weights, rows):
        if request.param == "another model":
            name = {"semantic": "semantic", "coarse": "coarse_acoustics"}[patch.stage]
            weights = transformer_weights(patch.stage, getattr(stranger, name))
        model = CausalModel(weights, transformer_spec(patch.module), patch.ops(weights.device))
        return Draft(model, patch.draft_counts)

    monkeypatch.setattr(CausalPatch, "draft", draft)
    return request.param


@pytest.mark.parametrize("drafts", DRAFTS, indirect=True)
@pytest.mark.parametrize("name", OPTIONS)
def test_equals_stock(stock, stocks_own, drafts, name):
    """Without a preset, with a short and with a full one."""
    fast = accelerated_copy(stock)
    for seed, history in enumerate(HISTORIES):
        assert_same(causal_stages(fast, seed, history, **OPTIONS[name]), stocks_own(seed, name))
    for counts in counts_of(fast):
        assert counts.rounds > 5 and counts.drafted_tokens > 10
        share = counts.accepted_tokens / counts.drafted_tokens
        low, high = {"int8": (0.7, 1), "the model itself": (1, 1), "another model": (0, 0.5)}[drafts]
        assert low <= share <= high


def test_min_eos_p_is_a_case_of_its_own(stocks_own):
    sampled, ended = ([stocks_own(seed, name)[0].shape[1] for seed in range(3)] for name in ("sampled", "min_eos_p"))
    assert sum(ended) < sum(sampled)


@pytest.mark.parametrize("drafts", DRAFTS, indirect=True)
def test_an_end_in_the_middle_of_a_round(stock, stocks_own, drafts):
    fast, lengths = accelerated_copy(stock), set()
    for seed in range(12):
        expected = stocks_own(seed, "sampled")
        assert_same(causal_stages(fast, seed, HISTORIES[seed % 3], **OPTIONS["sampled"]), expected)
        lengths.add(expected[0].shape[1])
    assert len(lengths) > 5 and min(lengths) < 45, lengths


@pytest.mark.parametrize("drafts", ["int8", "another model"], indirect=True)
def test_the_whole_cache(small_model, drafts):
    """17 positions of prompt and 143 tokens; the last of 144 needs none. One more fails, as with stock."""
    fast, room = accelerated_copy(small_model), SMALL.block_size - SMALL.max_input
    expected = causal_stages(small_model, 0, max_new_tokens=room)
    assert expected[0].shape[1] == room
    assert_same(causal_stages(fast, 0, max_new_tokens=room), expected)
    for model in (small_model, fast):
        with pytest.raises(IndexError):
            causal_stages(model, 0, max_new_tokens=room + 1)
    assert_same(causal_stages(fast, 0, max_new_tokens=room), expected)


def test_batches_do_not_speculate(small_model):
    fast = accelerated_copy(small_model, speculate=True)
    assert_equal_to_stock(small_model, fast, **texts(SMALL, [4, 9]), **SAMPLED)
    assert counts_of(fast) == [DraftCounts(), DraftCounts()]
    assert_equal_to_stock(small_model, fast, **ONE, **SAMPLED)
    assert all(counts.rounds > 0 for counts in counts_of(fast))


@pytest.mark.parametrize(
    "options, speculates",
    [
        ({}, True),
        ({"speculate": None}, True),
        ({"speculate": True}, True),
        ({"speculate": True, "backend": "torch"}, True),
        ({"speculate": False}, False),
        ({"backend": "torch"}, False),
        ({"weights": "int8"}, False),
        ({"weights": "int8", "speculate": False}, False),
    ],
)
def test_the_argument(small_model, options, speculates):
    fast = accelerated_copy(small_model, **options)
    got = causal_stages(fast, 1, **SAMPLED)
    if "weights" not in options:
        assert_same(got, causal_stages(small_model, 1, **SAMPLED))
        copied = [s.copied_bytes > 0 for s in acceleration_report(fast).stages[:2]]
        assert copied == [speculates] * 2
    assert [counts.rounds > 0 for counts in counts_of(fast)] == [speculates] * 2


def test_int8_drafts_of_int8_weights_are_refused(small_model):
    """Before anything is patched, and without a change to a model that is."""
    stock = copy.deepcopy(small_model)
    before = {name: dict(vars(module)) for name, module in stock.named_modules()}
    with pytest.raises(ValueError, match=r"speculate: expected None or False with weights='int8' .*got True"):
        accelerate_bark(stock, weights="int8", speculate=True)
    assert {name: dict(vars(module)) for name, module in stock.named_modules()} == before
    fast = accelerated_copy(small_model)
    before = fast.generate
    with pytest.raises(ValueError, match="speculate"):
        accelerate_bark(fast, weights="int8", speculate=True)
    assert fast.generate == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_models_keep_their_own_tokens(small_model, dtype):
    """Those of a run without drafts: the sums of a step do not depend on how many tokens it takes."""
    stock = copy.deepcopy(small_model).to(dtype)
    fast = accelerated_copy(stock, speculate=True)
    expected = causal_stages(accelerated_copy(stock, speculate=False), 2, **SAMPLED)
    assert_same(causal_stages(fast, 2, **SAMPLED), expected)
    assert all(counts.accepted_tokens > 0 for counts in counts_of(fast))


@pytest.mark.parametrize("weights", ["float16", "bfloat16"])
def test_smaller_weights_keep_their_own_tokens(small_model, weights):
    fast = accelerated_copy(small_model, weights=weights, speculate=True)
    expected = causal_stages(accelerated_copy(small_model, weights=weights, speculate=False), 2, **SAMPLED)
    assert_same(causal_stages(fast, 2, **SAMPLED), expected)
    assert all(counts.accepted_tokens > 0 for counts in counts_of(fast))


def test_new_weights_reach_the_drafts(small_model):
    """Drafts of old weights would still give stock's tokens, but hardly any right ones."""
    stock, fast = copy.deepcopy(small_model), accelerated_copy(small_model)
    causal_stages(fast, 0, **SAMPLED)
    state = build(SMALL, seed=9).state_dict()
    stock.load_state_dict(state)
    fast.load_state_dict(state)
    before = [copy.copy(counts) for counts in counts_of(fast)]
    assert_same(causal_stages(fast, 0), causal_stages(stock, 0))
    for old, new in zip(before, counts_of(fast), strict=True):
        drafted = new.drafted_tokens - old.drafted_tokens
        assert new.accepted_tokens - old.accepted_tokens > 0.7 * drafted > 7


# ---- streaming


@pytest.mark.parametrize("policy", ["exact", "low_latency", "preview"])
@pytest.mark.parametrize("interleave", [False, True])
def test_streams_are_the_same_with_and_without(stock, policy, interleave):
    """To the sample and to the random state; without `interleave` the tokens are stock's (tests/streaming)."""
    heard = {}
    for speculate in (False, True):
        fast = accelerated_copy(stock, speculate=speculate)
        torch.manual_seed(5)
        streamer = AudioStreamer(fast, policy=policy, interleave=interleave, first_chunk_frames=8, max_chunk_frames=20)
        chunks = list(stream(fast, streamer=streamer, **ONE, **SAMPLED, semantic_max_new_tokens=70))
        heard[speculate] = torch.cat(chunks, 1), torch.get_rng_state()
        assert [counts.rounds > 0 for counts in counts_of(fast)] == [speculate] * 2
    assert torch.equal(heard[True][0], heard[False][0]) and heard[True][0].numel() > 0
    assert torch.equal(heard[True][1], heard[False][1])


@pytest.mark.parametrize("stage", [SemanticStage, CoarseStage])
def test_cancel_within_a_round(small_model, monkeypatch, stage):
    """Tokens that were drawn ahead are dropped, and the next generation starts afresh."""
    fast = accelerated_copy(small_model, speculate=True)
    streamer, ahead = AudioStreamer(fast), []
    step = stage.step

    def cancelling(self, state):
        tokens = step(self, state)
        left = 0 if state.token_source is None else len(state.token_source._ahead)
        if left or ahead:
            ahead.append(left)
            streamer.cancel()
        return tokens

    monkeypatch.setattr(stage, "step", cancelling)
    options = {**ONE, "semantic_max_new_tokens": 60}
    generation = threading.Thread(target=lambda: fast.generate(**options, streamer=streamer))
    generation.start()
    assert list(streamer) == []
    generation.join(LIMIT_S)
    assert not generation.is_alive() and len(ahead) == 1 and ahead[0] > 0
    monkeypatch.undo()
    assert_equal_to_stock(small_model, fast, **options)
