"""Drafts written by hand: right, wrong or ending early at chosen places, tokens and random numbers stay the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.bark_models import SMALL, build, preset, stage_configs, texts

from bark_accel.decoding.sampling import SamplingConfig
from bark_accel.decoding.speculation import MAX_DRAFT_TOKENS, Draft, Speculation
from bark_accel.hf.specs import coarse_spec, semantic_spec
from bark_accel.hf.transformer import transformer_spec, transformer_weights
from bark_accel.ops.backend import get_ops
from bark_accel.report import DraftCounts
from bark_accel.stages.coarse import CoarseStage
from bark_accel.stages.semantic import SemanticStage
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCachePool

CPU = torch.device("cpu")
EOS = SMALL.semantic_vocab
INPUTS = texts(SMALL, [6])
RIGHT, WRONG, STOP = "right", "wrong", "stop"
SAMPLINGS = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "temperature": 0.9, "top_k": 50},
    "min_eos_p": {"do_sample": True, "top_p": 0.9, "min_eos_p": 0.01, "renormalize": True},
}


class ScriptedDraft:
    """Stands in for the model that drafts: the i-th token of a generation is the true one, another one, or the end.

    Leaves NaN in the cache where a real one leaves its own keys and values.
    """

    cache_dtype = torch.float32

    def __init__(self, script, index_of=None):
        self.expected = []
        self.drafted = self.accepted = 0
        self._script = script
        self.index_of = index_of
        self._last = None
        self._right = True

    def decode(self, ids, cache, rows):
        index = self.index_of(cache)
        cache.keys[:, :, :, cache.position] = torch.nan
        cache.values[:, :, :, cache.position] = torch.nan
        cache.advance(1)
        true = self.expected[index] if index < len(self.expected) else rows.start
        wrong = rows.start + (true - rows.start + 1) % 50
        token = {RIGHT: true, WRONG: wrong, STOP: rows.stop - 1}[self._script[index % len(self._script)]]
        # A wrong draft is followed by its own successor within a round only.
        if self._last != (index - 1, int(ids)):
            self._right = True
        self._right = self._right and index < len(self.expected) and token == true
        self._last = index, token
        self.drafted += 1
        self.accepted += self._right
        logits = torch.full((1, 1, rows.stop - rows.start), -torch.inf)
        logits[..., token - rows.start] = 0
        return logits


@pytest.fixture(scope="module")
def ending():
    """A model that ends an utterance after some tens of tokens."""
    model = build(SMALL, seed=8)
    with torch.no_grad():
        model.semantic.lm_head.weight[EOS] *= 2
    return model


def causal_model(stage, module):
    weights, spec = transformer_weights(stage, module), transformer_spec(module)
    return CausalModel(weights, spec, get_ops("native", CPU))


def run_semantic(model, sampling, seed, draft=None, max_new_tokens=60, *, inputs=INPUTS, stop_tokens=(EOS,)):
    """Tokens and the generator's end state. Without `stop_tokens` an end is a token like the others."""
    causal = causal_model("semantic", model.semantic)
    spec = semantic_spec(stage_configs(model)["semantic_generation_config"])
    config = SamplingConfig(max_new_tokens=max_new_tokens, stop_tokens=stop_tokens, pad_token=EOS, **sampling)
    torch.manual_seed(seed)
    stage, token_source = SemanticStage(causal, spec), None if draft is None else Speculation(causal, draft)
    with torch.no_grad(), KVCachePool().borrow(causal.spec, len(inputs["input_ids"]), torch.float32, CPU) as cache:
        state = stage.start(*inputs.values(), [None], config, cache, token_source)
        while not state.done:
            stage.step(state)
        assert cache.position == int(cache.length) == spec.prompt_tokens + len(state.tokens) - 1
    return state.result(), torch.get_rng_state()


def semantic_draft(script):
    # The prompt and the token that is fed: the one that follows is drafted.
    return ScriptedDraft(script, lambda cache: cache.position - SMALL.max_input)


def run_coarse(model, sampling, seed, draft=None, history=None, semantic_tokens=50):
    configs = stage_configs(model)
    spec = coarse_spec(configs["semantic_generation_config"], configs["coarse_generation_config"], SMALL.codebook_size)
    causal = causal_model("coarse", model.coarse_acoustics)
    config = SamplingConfig(max_new_tokens=spec.window_tokens, **sampling)
    semantic = torch.randint(0, EOS, (1, semantic_tokens), generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    stage, token_source = CoarseStage(causal, spec), None if draft is None else Speculation(causal, draft)
    with torch.no_grad(), KVCachePool().borrow(causal.spec, 1, torch.float32, CPU) as cache:
        state = stage.start(1, [history], config, cache, token_source)
        if draft is not None and isinstance(draft.model, ScriptedDraft):
            draft.model.index_of = lambda cache: (
                cache.position - SMALL.max_input + state.prompt.coarse_start - state.coarse_history
            )
        stage.push(state, semantic, final=True)
        while stage.ready(state):
            stage.step(state)
    return state.result(), torch.get_rng_state()


def assert_same(got, expected):
    assert got[0].tolist() == expected[0].tolist()
    assert torch.equal(got[1], expected[1]), "the generators end in different states"


scripts = st.lists(st.sampled_from([RIGHT, RIGHT, RIGHT, WRONG, STOP]), min_size=1, max_size=23)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(script=scripts, seed=st.integers(0, 30), most=st.sampled_from([1, 2, 9, 60]))
def test_semantic_tokens_stay_the_same(ending, sampling, script, seed, most):
    """Also where the utterance ends in the middle of a round, or a draft wrongly ends it."""
    expected = run_semantic(ending, SAMPLINGS[sampling], seed, max_new_tokens=most)
    model, counts = semantic_draft(script), DraftCounts()
    model.expected = expected[0][0].tolist()
    assert_same(run_semantic(ending, SAMPLINGS[sampling], seed, Draft(model, counts), most), expected)
    assert counts.drafted_tokens == model.drafted


def test_the_utterances_of_the_tests_end_early(ending):
    lengths = {run_semantic(ending, SAMPLINGS["sampled"], seed)[0].shape[1] for seed in range(12)}
    assert len(lengths) > 5 and min(lengths) < 30 < max(lengths), lengths


@pytest.mark.parametrize("history", [None, preset(SMALL, 12, 20), preset(SMALL, 40, 60)], ids=["none", "short", "full"])
@pytest.mark.parametrize("sampling", ["greedy", "sampled"])
@settings(max_examples=6, suppress_health_check=list(HealthCheck))
@given(script=scripts, seed=st.integers(0, 30), semantic_tokens=st.sampled_from([1, 9, 14, 50]))
def test_coarse_tokens_stay_the_same(small_model, history, sampling, script, seed, semantic_tokens):
    """Codebooks take turns, windows of odd length: continued, and prefilled anew."""
    history = history and (history["semantic_prompt"], history["coarse_prompt"])
    options = {"history": history, "semantic_tokens": semantic_tokens}
    expected = run_coarse(small_model, SAMPLINGS[sampling], seed, **options)
    model, counts = ScriptedDraft(script), DraftCounts()
    model.expected = expected[0][0].tolist()
    assert_same(run_coarse(small_model, SAMPLINGS[sampling], seed, Draft(model, counts), **options), expected)
    assert counts.drafted_tokens == model.drafted and (model.drafted or semantic_tokens == 1)


def run_scripted(model, script, sampling, tokens):
    """Drafts by a script, of an utterance without an end; equal to a run without them. Returns the counts."""
    options = {"max_new_tokens": tokens, "stop_tokens": ()}
    expected = run_semantic(model, SAMPLINGS[sampling], 0, **options)
    draft = Draft(semantic_draft(script), DraftCounts())
    draft.model.expected = expected[0][0].tolist()
    assert len(draft.model.expected) == tokens
    assert_same(run_semantic(model, SAMPLINGS[sampling], 0, draft, **options), expected)
    return draft.counts


@pytest.mark.parametrize("sampling", ["greedy", "sampled"])
def test_drafts_that_are_all_right(small_model, sampling):
    """Rounds of the full length, each with one token of the verification's own."""
    assert MAX_DRAFT_TOKENS == 7
    counts = run_scripted(small_model, [RIGHT], sampling, 65)
    assert counts == DraftCounts(rounds=8, drafted_tokens=56, accepted_tokens=56)


@pytest.mark.parametrize("sampling", ["greedy", "sampled"])
def test_drafts_that_are_all_wrong(small_model, sampling):
    """Half as many drafts in each round, but one, and none for the last token."""
    counts = run_scripted(small_model, [WRONG], sampling, 40)
    assert counts == DraftCounts(rounds=39, drafted_tokens=7 + 3 + 36, accepted_tokens=0)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(script=scripts, seed=st.integers(0, 30))
def test_counts(ending, script, seed):
    """A draft of the end of speech counts as well."""
    expected = run_semantic(ending, SAMPLINGS["sampled"], seed)
    model, counts = semantic_draft(script), DraftCounts()
    model.expected = expected[0][0].tolist()
    run_semantic(ending, SAMPLINGS["sampled"], seed, Draft(model, counts))
    assert (counts.drafted_tokens, counts.accepted_tokens) == (model.drafted, model.accepted)
    # Each round adds a token of the verification's own, unless an accepted draft ends it all.
    assert counts.rounds + counts.accepted_tokens - (expected[0].shape[1] - 1) in (0, 1)


def test_up_to_the_last_place_of_the_cache(small_model):
    """One token more has no position, with and without drafts."""
    room = SMALL.block_size - SMALL.max_input - 1
    for script in ([RIGHT], [WRONG], [RIGHT, RIGHT, WRONG]):
        run_scripted(small_model, script, "sampled", room + 1)
        for draft in (None, Draft(semantic_draft(script), DraftCounts())):
            with pytest.raises(IndexError, match=r"at most 160 positions .*got 160 in the cache plus 1 new"):
                run_semantic(small_model, SAMPLINGS["sampled"], 0, draft, room + 2, stop_tokens=())
