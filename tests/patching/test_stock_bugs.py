"""Stock's bugs, each one kept (stock's tokens, and a warning where it hurts) and fixed (what was asked for)."""

from __future__ import annotations

import copy
import math
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from support.bark_models import SMALL, build, generation_config, texts
from support.parity import (
    accelerated_copy,
    assert_equal_to_stock,
    assert_same_run,
    assert_same_tokens,
    assert_stock_gives,
    run,
)
from transformers import GenerationConfig

from bark_accel import AudioStreamer, accelerate_bark, acceleration_report
from bark_accel.patches.stock_bugs import STOCK_BUGS

INPUTS = texts(SMALL, [4, 9])
SHORT = {"semantic_max_new_tokens": 30}
CUT = {k: torch.cat([v, v], dim=1) for k, v in texts(SMALL, [16, 4]).items()}
CODES_END = SMALL.semantic_vocab + 2 * SMALL.codebook_size
BEYOND = list(range(CODES_END, SMALL.coarse_vocab))


@pytest.fixture
def fixed(small_model):
    return accelerated_copy(small_model, fix_stock_bugs=True)


def streamed(model, seed, **kwargs):
    """The codes that a run with an `AudioStreamer` ends in, as one chunk of stock's waveform."""
    torch.manual_seed(seed)
    streamer = AudioStreamer(model, policy="exact", max_queued_chunks=1000)
    audio = model.generate(**kwargs, streamer=streamer)
    assert torch.equal(torch.cat(list(streamer), dim=1), audio)
    return audio


def assert_stage_is_stocks(stage, got, stock, **kwargs):
    assert_stock_gives(lambda expected: assert_same_tokens(stage, expected[0][stage], got), stock, **kwargs)


@contextmanager
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


# Names.


@pytest.mark.parametrize("fix", ["nope", ["cut_text", "nope"], 3, [None]])
def test_unknown_names(small_model, fix):
    model = copy.deepcopy(small_model)
    with pytest.raises(ValueError, match=r"fix_stock_bugs: expected True, False or names among 'cut_text', .*got"):
        accelerate_bark(model, fix_stock_bugs=fix)
    assert "generate" not in vars(model)


@pytest.mark.parametrize(
    "fix, names",
    [(False, []), ([], []), (True, list(STOCK_BUGS)), ("cut_text", ["cut_text"]), ({"cut_text"}, ["cut_text"])],
)
def test_the_report_lists_them(small_model, fix, names):
    report = acceleration_report(accelerated_copy(small_model, fix_stock_bugs=fix))
    assert [name for name, is_fixed in report.stock_bugs.items() if is_fixed] == names
    assert report.stock_bugs.keys() == STOCK_BUGS.keys()
    assert f"stock's bugs fixed: {', '.join(names) or 'none'}; kept: " in str(report)


def test_fixes_outlive_a_copy_and_a_later_call_applies_new_ones(fixed):
    assert all(acceleration_report(copy.deepcopy(fixed)).stock_bugs.values())
    assert not any(acceleration_report(accelerate_bark(fixed)).stock_bugs.values())


def test_fixes_change_nothing_where_no_bug_shows(small_model):
    """Nothing of the list is asked for but what shows unasked: ids beyond the codebooks, rows of several lengths."""
    fix = sorted(STOCK_BUGS.keys() - {"codes_beyond_codebook", "batch_tails"})
    fast = accelerated_copy(small_model, fix_stock_bugs=fix)
    assert_equal_to_stock(small_model, fast, **INPUTS, **SHORT, do_sample=True, fine_temperature=0.6)
    assert_equal_to_stock(small_model, fast, **INPUTS, **SHORT)


# One by one; test_bad_input.py has what is warned about where they are kept.


def test_cut_text(small_model, fixed):
    with pytest.warns(UserWarning, match="is cut"):
        assert_equal_to_stock(small_model, accelerated_copy(small_model), **CUT, semantic_max_new_tokens=8)
    state = torch.get_rng_state()
    for streamer in (None, AudioStreamer(fixed)):
        with pytest.raises(ValueError, match="input_ids: expected at most 16 text tokens, got 32"):
            fixed.generate(**CUT, do_sample=True, streamer=streamer)
    assert torch.equal(torch.get_rng_state(), state), "no work is done before the check"
    padded = {k: torch.cat([v, torch.zeros_like(v)], dim=1) for k, v in INPUTS.items()}
    assert fixed.generate(**padded, semantic_max_new_tokens=8).shape[1] > 0


def test_ignored_min_eos_p():
    """So low that every row ends early."""
    stock = build(SMALL, seed=6, semantic={"min_eos_p": 0.02})
    options = {"do_sample": True, **SHORT}
    kept, fixed = accelerated_copy(stock), accelerated_copy(stock, fix_stock_bugs=["ignored_min_eos_p"])
    with pytest.warns(UserWarning, match="ignores generation_config.semantic_config"):
        assert_equal_to_stock(stock, kept, **INPUTS, **options)
    with no_warnings():
        got = run(fixed, 0, **INPUTS, **options)[0]["semantic"]
    assert_stage_is_stocks("semantic", got, stock, **INPUTS, **options, min_eos_p=0.02)
    assert got.shape != run(stock, 0, **INPUTS, **options)[0]["semantic"].shape
    for argument in ({"min_eos_p": 0.9}, {"semantic_min_eos_p": 0.9}):
        assert_equal_to_stock(stock, fixed, **INPUTS, **options, **argument)


def test_ignored_min_eos_p_with_a_streamer():
    stock = build(SMALL, seed=6, semantic={"min_eos_p": 0.02})
    fixed = accelerated_copy(stock, fix_stock_bugs=["ignored_min_eos_p"])
    options = {**INPUTS, **SHORT, "do_sample": True}
    assert torch.equal(streamed(fixed, 0, **options), streamed(fixed, 0, **options, min_eos_p=0.02))


def test_ignored_generation_config(small_model):
    settings = {"do_sample": True, "temperature": 0.8, "top_k": 12}
    other = generation_config(
        SMALL, semantic={**settings, "min_eos_p": 0.005}, coarse=settings, fine={"temperature": 0.5}
    )
    kept = accelerated_copy(small_model)
    fixed = accelerated_copy(small_model, fix_stock_bugs=["ignored_generation_config", "ignored_min_eos_p"])
    with pytest.warns(UserWarning, match="ignores generation_config="):
        assert_equal_to_stock(small_model, kept, **INPUTS, **SHORT, generation_config=other)
    own = fixed.generation_config
    with no_warnings():
        got = run(fixed, 3, **INPUTS, **SHORT, generation_config=other)
    assert fixed.generation_config is own, "the model's own stays"
    expected = copy.deepcopy(small_model)
    expected.generation_config = other
    assert 0 < got[0]["semantic"].shape[1] < 30
    assert_stock_gives(lambda run: assert_same_run(run, got), expected, 3, **INPUTS, **SHORT, min_eos_p=0.005)
    assert_equal_to_stock(small_model, fixed, **INPUTS, **SHORT, generation_config=None)


def test_generation_config_argument_with_a_streamer(small_model):
    other = generation_config(SMALL, semantic={"do_sample": True}, coarse={"do_sample": True})
    fixed, plain = (
        accelerated_copy(small_model, fix_stock_bugs=True),
        accelerated_copy(small_model, fix_stock_bugs=True),
    )
    plain.generation_config = other
    got = streamed(fixed, 3, **INPUTS, **SHORT, generation_config=other)
    assert torch.equal(got, streamed(plain, 3, **INPUTS, **SHORT))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: delattr(c, "coarse_acoustics_config"), "coarse_acoustics_config: expected a dict .* got NoneType"),
        (lambda c: delattr(c, "codebook_size"), "codebook_size: expected an int, got None"),
    ],
)
def test_generation_configs_that_do_not_fit(fixed, change, message):
    config = generation_config(SMALL)
    change(config)
    streamer = AudioStreamer(fixed)
    for options in ({}, {"streamer": streamer}):
        with pytest.raises(ValueError, match=message):
            fixed.generate(**INPUTS, generation_config=config, **options)
    with pytest.raises(ValueError, match=message):
        list(streamer)
    with pytest.raises(ValueError, match="semantic_config: expected a dict"):
        fixed.generate(**INPUTS, generation_config=GenerationConfig(max_new_tokens=4))


def test_fine_not_greedy():
    stock = build(SMALL, fine={"temperature": 0.7})
    kept, fixed = accelerated_copy(stock), accelerated_copy(stock, fix_stock_bugs=["fine_not_greedy"])
    options = {**INPUTS, **SHORT, "do_sample": False}
    with pytest.warns(UserWarning, match=r"do_sample=False: Bark's fine stage still samples at temperature 0\.7"):
        assert_equal_to_stock(stock, kept, **options)
    with no_warnings():
        kept.generate(**options)  # said once
        got = run(fixed, 0, **options)[0]["fine"]
    assert_stage_is_stocks("fine", got, stock, **options, fine_temperature=None)
    assert not torch.equal(run(stock, 0, **options)[0]["fine"], got)
    # Not asked for: the config's temperature holds.
    assert_equal_to_stock(stock, fixed, **INPUTS, **SHORT)
    assert torch.equal(streamed(fixed, 0, **options), streamed(fixed, 1, **options, fine_temperature=None))


@pytest.mark.parametrize("value", [False, 0, np.False_])
@pytest.mark.parametrize("name", ["do_sample", "fine_do_sample"])
def test_fine_not_greedy_of_any_false(name, value):
    """For the fine stage alone too; None is no wish."""
    stock = build(SMALL, fine={"temperature": 0.7})
    kept, fixed = accelerated_copy(stock), accelerated_copy(stock, fix_stock_bugs=["fine_not_greedy"])
    with pytest.warns(UserWarning, match=r"do_sample=False: Bark's fine stage still samples at temperature 0\.7"):
        assert_equal_to_stock(stock, kept, **INPUTS, **SHORT, **{name: value})
    got = run(fixed, 0, **INPUTS, **SHORT, **{name: value})[0]["fine"]
    assert_same_tokens("fine", run(stock, 0, **INPUTS, **SHORT, fine_temperature=None)[0]["fine"], got)
    with no_warnings():
        assert_equal_to_stock(stock, fixed, **INPUTS, **SHORT, **{name: None})


@pytest.mark.parametrize("options", [{"fine_temperature": 1.0}, {"temperature": 1.0, "do_sample": True}])
def test_fine_temperature_one(small_model, options):
    kept, fixed = accelerated_copy(small_model), accelerated_copy(small_model, fix_stock_bugs=["fine_temperature_one"])
    options = {**INPUTS, **SHORT, **options}
    with pytest.warns(UserWarning, match=r"temperature=1\.0: Bark's fine stage takes the most likely code"):
        assert_equal_to_stock(small_model, kept, **options)
    coarse, fine = (run(fixed, 0, **options)[0][stage] for stage in ("coarse", "fine"))
    assert_stage_is_stocks("coarse", coarse, small_model, **options)
    almost = {**options, "fine_temperature": 1.0 + 1e-9}  # float32 cannot tell it from 1
    assert_stage_is_stocks("fine", fine, small_model, **almost)
    assert not torch.equal(run(small_model, 0, **options)[0]["fine"], fine)
    assert_equal_to_stock(small_model, fixed, **{**options, "do_sample": False})


def test_fine_temperature_one_is_the_default(small_model):
    """Of a config without a temperature, which nobody asked for."""
    fast = accelerated_copy(small_model, fix_stock_bugs=["fine_temperature_one"])
    with no_warnings():
        assert_equal_to_stock(small_model, fast, **INPUTS, **SHORT)


def test_fine_temperature_zero(small_model, fixed):
    options = {**INPUTS, **SHORT}
    with pytest.raises(ValueError, match=r"got 0\.0; fix_stock_bugs=\['fine_temperature_zero'\]"):
        accelerated_copy(small_model).generate(**options, fine_temperature=0.0)
    got = run(fixed, 0, **options, fine_temperature=0.0)[0]["fine"]
    expected = run(fixed, 0, **options, fine_temperature=None)[0]["fine"]
    assert_same_tokens("fine", expected, got)
    with pytest.raises(ValueError, match=r"expected None or a number other than 0, got nan$"):
        fixed.generate(**options, fine_temperature=math.nan)


def test_fixes_of_the_fine_stage_hold_in_stocks_own_code(small_model):
    stock, fast = (build(SMALL, fine={"temperature": 0.7}) for _ in range(2))
    accelerate_bark(fast, fix_stock_bugs=True)
    for model in (stock, fast):
        model.fine_acoustics.layers[0].mlp.in_proj.register_forward_hook(lambda module, args, output: 1.5 * output)
    options = {**INPUTS, **SHORT, "do_sample": False, "coarse_suppress_tokens": BEYOND}
    expected = run(stock, 0, **options, fine_temperature=None)[0]["fine"]
    assert_same_tokens("fine", expected, run(fast, 0, **options)[0]["fine"])
    report = acceleration_report(fast)
    assert {reason.stage for reason in report.fallbacks} == {"fine"}
    assert report.token_choices == ()


@pytest.fixture(scope="module")
def drawn_beyond():
    """A model that likes the ids beyond the codebooks."""
    model = build(SMALL)
    with torch.no_grad():
        model.coarse_acoustics.lm_head.weight[CODES_END:] *= 4
    return model


@pytest.mark.parametrize("options", [{"do_sample": True}, {"do_sample": True, "coarse_top_k": 3}, {}])
def test_codes_beyond_codebook(drawn_beyond, options):
    kept = accelerated_copy(drawn_beyond)
    fixed = accelerated_copy(drawn_beyond, fix_stock_bugs=["codes_beyond_codebook"])
    options = {**INPUTS, **SHORT, **options}
    got = assert_equal_to_stock(drawn_beyond, kept, **options)
    assert (got["coarse"] >= CODES_END).any(), "expected the model to draw ids beyond the codebooks"
    tokens = run(fixed, 0, **options)[0]["coarse"]
    assert (tokens < CODES_END).all()
    assert_stage_is_stocks("coarse", tokens, drawn_beyond, **options, coarse_suppress_tokens=BEYOND)


def test_codes_beyond_codebook_in_stocks_own_loop(drawn_beyond):
    """Without and with a streamer, and beside tokens that the caller suppresses."""
    fixed = accelerated_copy(drawn_beyond, fix_stock_bugs=["codes_beyond_codebook"], strict=False)
    options = {**INPUTS, **SHORT, "do_sample": True, "coarse_no_repeat_ngram_size": 3}
    suppressed = [SMALL.semantic_vocab + 3]
    tokens = run(fixed, 0, **options, coarse_suppress_tokens=suppressed)[0]["coarse"]
    assert_stage_is_stocks("coarse", tokens, drawn_beyond, **options, coarse_suppress_tokens=suppressed + BEYOND)
    options |= texts(SMALL, [4])  # streamed rows are silent after their end
    audio = streamed(fixed, 0, **options)
    expected = run(drawn_beyond, 0, **options, coarse_suppress_tokens=BEYOND)[1]
    torch.testing.assert_close(audio, expected, rtol=0, atol=1e-6)


def test_codes_beyond_codebook_drawn_by_a_draft(drawn_beyond):
    """One row, with self-speculation."""
    fixed = accelerated_copy(drawn_beyond, fix_stock_bugs=["codes_beyond_codebook"], speculate=True)
    options = {**texts(SMALL, [5]), **SHORT, "do_sample": True}
    tokens = run(fixed, 0, **options)[0]["coarse"]
    assert_stage_is_stocks("coarse", tokens, drawn_beyond, **options, coarse_suppress_tokens=BEYOND)
