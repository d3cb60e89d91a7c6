"""Beams of any kind beside batches, voices and several results of each text: stock's, chosen from our steps."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from support.bark_models import SMALL, preset, texts
from support.parity import accelerated_copy, assert_equal_to_stock, run
from support.stock_limits import skip_where_stock_fails
from transformers import GenerationMixin

from bark_accel import acceleration_report
from bark_accel.hf.compat import cache_argument
from bark_accel.patches.step_view import StepCache, step_view
from bark_accel.transformer.kv_cache import KVCache

VOICES = [preset(SMALL, 40, 60, seed=2), preset(SMALL, 12, 20, seed=1), None]
SHORT = {"semantic_max_new_tokens": 18, "fine_temperature": 0.7}
STOCKS_ERRORS = (ValueError, RuntimeError, TypeError, IndexError, AttributeError)


@pytest.fixture(autouse=True)
def _beams_of_stock():
    skip_where_stock_fails("beams")


BEAMS = {
    "do_sample": st.booleans(),
    "length_penalty": st.sampled_from([-1.0, 0.0, 0.5, 2.0]),
    "early_stopping": st.sampled_from([True, False, "never"]),
    "num_return_sequences": st.integers(1, 3),
    "temperature": st.floats(0.3, 1.5),
    "top_k": st.sampled_from([3, 40]),
    "repetition_penalty": st.floats(0.7, 1.5),
    "no_repeat_ngram_size": st.integers(1, 3),
    "min_new_tokens": st.integers(0, 20),
    "bad_words_ids": st.just([[33], [75, 52]]),
    "eos_token_id": st.sampled_from([75, [110, 33]]),
    "renormalize_logits": st.just(True),
}


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), rows=st.integers(1, 3), voice=st.sampled_from(VOICES), seed=st.integers(0, 99))
def test_any_beams(small_model, data, rows, voice, seed):
    options = {**texts(SMALL, [4, 9, 16][:rows]), **SHORT, "history_prompt": voice}
    for stage in data.draw(st.sampled_from([["semantic"], ["coarse"], ["semantic", "coarse"]]), label="stages"):
        few = [name for name in BEAMS if stage == "semantic" or name != "num_return_sequences"]
        drawn = data.draw(st.lists(st.sampled_from(few), max_size=5, unique=True), label=stage)
        options |= {f"{stage}_{name}": data.draw(BEAMS[name], label=name) for name in drawn}
        options[f"{stage}_num_beams"] = data.draw(st.integers(2, 5), label="num_beams")
    try:
        expected = run(small_model, seed, **options)
    except STOCKS_ERRORS:
        reject()
    assert_equal_to_stock(small_model, accelerated_copy(small_model), seed, ran=expected, **options)


@pytest.mark.parametrize("more", [{}, {"semantic_num_return_sequences": 2}, {"coarse_num_beams": 2}], ids=str)
def test_voices_of_their_own(small_model, more):
    """Every row, and each of several results, is what it is alone with its voice."""
    options = {"semantic_max_new_tokens": 18, "fine_temperature": None, "semantic_num_beams": 3, **more}
    inputs, several = texts(SMALL, [4, 9, 16]), more.get("semantic_num_return_sequences", 1)
    fast = accelerated_copy(small_model)
    got = run(fast, 0, **inputs, **options, history_prompt=VOICES)[0]
    assert acceleration_report(fast).fallbacks == ()
    for row, voice in enumerate(VOICES):
        alone = {name: part[row : row + 1] for name, part in inputs.items()}
        expected = run(small_model, 0, **alone, **options, history_prompt=voice)[0]
        own = slice(row * several, (row + 1) * several)
        assert torch.equal(got["semantic"][own, : expected["semantic"].shape[1]], expected["semantic"])
        for stage in ("coarse", "fine"):
            part = got[stage][own, ..., : expected[stage].shape[-1]]
            said = (part != 0).any(-2 if stage == "fine" else 0)  # 0 after a row's own end
            assert said.any()
            assert torch.equal(part[..., said] if stage == "coarse" else part, expected[stage][..., : part.shape[-1]])


def steps_of(module: Any) -> AbstractContextManager[Any]:
    """Lend a view of an accelerated stage's module with our steps."""
    patch = module.generate.__self__
    model = patch.model(patch.weights())
    place = (model.weights.cache_dtype, model.weights.device)
    return step_view(module, model, lambda rows: patch.settings.pool.borrow(model.spec, rows, *place))


@pytest.mark.parametrize("sampled", [False, True])
def test_scores(small_model, sampled):
    """Of every step and of the sequences, and which beam each token came from."""
    fast = accelerated_copy(small_model)
    ids = torch.randint(0, 90, (2, 20), generator=torch.Generator().manual_seed(0))
    asked = {"output_scores": True, "output_logits": True, "return_dict_in_generate": True}
    options = {"num_beams": 3, "num_return_sequences": 2, "do_sample": sampled, "max_new_tokens": 12, **asked}
    options |= {"length_penalty": 0.5, "repetition_penalty": 1.2, "eos_token_id": [110, 33], "pad_token_id": 33}

    def generated(module: Any) -> Any:
        torch.manual_seed(0)
        return super(type(module), module).generate(ids, **options)

    expected = generated(small_model.coarse_acoustics)
    with steps_of(fast.coarse_acoustics) as view:
        got = generated(view)
    for name in ("sequences", "beam_indices"):
        assert torch.equal(got[name], expected[name])
    for name in ("sequences_scores", "scores", "logits"):
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(not hasattr(GenerationMixin, "_group_beam_search"), reason="moved out of Transformers")
@pytest.mark.parametrize(
    "options",
    [
        {"coarse_num_beams": 4, "coarse_num_beam_groups": 2, "coarse_diversity_penalty": 0.7},
        {"semantic_num_beams": 3, "semantic_force_words_ids": [[33, 34]]},
        {"coarse_num_beams": 3, "coarse_force_words_ids": [[120]]},
    ],
    ids=["groups", "words", "coarse words"],
)
def test_older_kinds(small_model, options):
    assert_equal_to_stock(small_model, accelerated_copy(small_model), **texts(SMALL, [4, 9]), **SHORT, **options)


@pytest.mark.parametrize("stage", ["semantic", "coarse"])
def test_low_memory(small_model, stage):
    """Transformers 4 takes the model's cache apart, which only its own model has; 5 refuses."""
    options = {**texts(SMALL, [4, 9]), **SHORT, f"{stage}_num_beams": 3, f"{stage}_low_memory": True}
    fast = accelerated_copy(small_model, strict=False)
    try:
        expected = run(small_model, 0, **options)
    except STOCKS_ERRORS as error:
        with pytest.raises(type(error)):
            run(fast, 0, **options)
        return
    assert_equal_to_stock(small_model, fast, ran=expected, **options)
    assert [(f.stage, f.detail) for f in acceleration_report(fast).fallbacks] == [
        (stage, "beam_search with low_memory=True")
    ]


class TestReorder:
    """Rows of the cache follow their beams."""

    LENGTH = 7

    @pytest.fixture
    def cache(self):
        """Four rows whose entries are numbers of their own; the first five columns are of equal prompts, in pairs."""
        numbers = torch.arange(2 * 4 * 3 * 10 * 2, dtype=torch.float32).view(2, 4, 3, 10, 2)
        cache = StepCache(KVCache(numbers.clone(), -numbers, torch.zeros(4, dtype=torch.int64)))
        cache.own.advance(self.LENGTH)
        ids = torch.tensor([[-1] * 5 + [1, 2], [-1] * 5 + [1, 3], [-2] * 5 + [1, 2], [-2] * 5 + [4, 2]])
        cache.ids = ids
        return cache

    def test_knows_equal_prompts(self, small_model):
        """Which it is given as embeddings."""
        fast = accelerated_copy(small_model)
        embeds = torch.randn(2, 6, 32)[[0, 1, 1, 0]]
        with steps_of(fast.semantic) as view:
            ids = view.forward(inputs_embeds=embeds)[cache_argument()].ids
        assert ids.shape == (4, 6) and (ids < 0).all() and (ids == ids[:, :1]).all()
        assert (ids[0] == ids[3]).all() and (ids[1] == ids[2]).all() and (ids[0] != ids[1]).all()

    @pytest.mark.parametrize(
        "beams, first",
        [([0, 1, 2, 3], None), ([1, 1, 2, 3], 6), ([0, 1, 3, 3], 5), ([1, 0, 3, 2], 5), ([2, 1, 2, 3], 0)],
    )
    def test_copies_from_where_the_ids_differ(self, cache, beams, first):
        before, ids = cache.own.keys.clone(), cache.ids.clone()
        cache.reorder_cache(torch.tensor(beams))
        first = self.LENGTH if first is None else first
        assert torch.equal(cache.ids, ids[beams])
        for entries, was in ((cache.own.keys, before), (cache.own.values, -before)):
            assert torch.equal(entries[:, :, :, first : self.LENGTH], was[:, beams, :, first : self.LENGTH])
            assert torch.equal(entries[:, :, :, :first], was[:, :, :, :first])
            assert torch.equal(entries[:, :, :, self.LENGTH :], was[:, :, :, self.LENGTH :])
