"""Arguments of `generate`: one clear error that says what was expected and what came, before any work."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from support.bark_models import SMALL, build, preset, texts
from support.parity import accelerated_copy, assert_equal_to_stock
from torch import nn

from bark_accel import AudioStreamer
from bark_accel.hf.configs import GenerationConfigs
from bark_accel.hf.stage_trace import trace_stages

INPUTS = texts(SMALL, [4, 9])
EOS = SMALL.semantic_vocab


@pytest.fixture(scope="module")
def fast(small_model):
    return accelerated_copy(small_model)


def with_part(key, value):
    return {**preset(SMALL, 20, 30), key: value}


CODES = torch.zeros(8, 30, dtype=torch.int64)
PRESETS = {
    "a short list": ([preset(SMALL, 20, 30)] * 3, ValueError, "a list with one .* for each of 2 rows, got a list of 3"),
    "a list of names": ([None, "v2/en"], TypeError, r"history_prompt\[1\]: expected a mapping .* got str"),
    "a list of lists": ([[], None], TypeError, r"history_prompt\[0\]: expected a mapping .* got list"),
    "a row's codes": (
        [None, with_part("fine_prompt", CODES + 64)],
        ValueError,
        r"history_prompt\[1\]\['fine_prompt'\]: expected codes in 0..63, got 64..64",
    ),
    "a name": ("v2/en_speaker_6", TypeError, "expected a mapping .* got str"),
    "missing key": (
        {"semantic_prompt": torch.zeros(3, dtype=torch.int64)},
        ValueError,
        "expected the keys .* got sem",
    ),
    "not an array": (with_part("fine_prompt", [[1]]), TypeError, "expected an array or tensor, got list"),
    "floats": (
        with_part("coarse_prompt", torch.zeros(2, 30)),
        TypeError,
        "expected integers, got torch.float32",
    ),
    "objects": (
        with_part("coarse_prompt", np.array([[1, 2], [3, None]])),
        TypeError,
        r"history_prompt\['coarse_prompt'\]: expected integers, got object",
    ),
    "strings": (with_part("semantic_prompt", np.array(["1", "2"])), TypeError, "expected integers, got <U1"),
    "float array": (with_part("coarse_prompt", np.zeros((2, 30))), TypeError, "expected integers, got"),
    "semantic 2-d": (with_part("semantic_prompt", CODES), ValueError, r"expected shape \[T\], got \[8, 30\]"),
    "coarse rows": (with_part("coarse_prompt", CODES), ValueError, r"expected shape \[2, T\], got \[8, 30\]"),
    "fine rows": (with_part("fine_prompt", CODES[:7]), ValueError, r"expected shape \[8, T\], got \[7, 30\]"),
    "code too large": (
        with_part("fine_prompt", CODES + 64),
        ValueError,
        r"expected codes in 0..63, got 64..64",
    ),
    "negative code": (
        with_part("coarse_prompt", CODES[:2] - 1),
        ValueError,
        r"expected codes in 0..63, got -1..-1",
    ),
    "semantic too large": (
        with_part("semantic_prompt", torch.tensor([5, 101])),
        ValueError,
        r"expected codes in 0..100, got 5..101",
    ),
}


@pytest.mark.parametrize("history, error, message", PRESETS.values(), ids=PRESETS.keys())
def test_presets(fast, history, error, message):
    state = torch.get_rng_state()
    with pytest.raises(error, match=message):
        fast.generate(**INPUTS, history_prompt=history, do_sample=True)
    assert torch.equal(torch.get_rng_state(), state), "no work is done before the check"


def test_texts(fast):
    configs = GenerationConfigs.of(fast)
    limit = fast.semantic.config.input_vocab_size - configs.semantic.text_encoding_offset
    ids, mask = INPUTS["input_ids"], INPUTS["attention_mask"].clone()
    for bad, error, message in [
        ({"input_ids": None}, TypeError, "input_ids: expected an int64 or int32 tensor .* got NoneType"),
        ({"input_ids": ids.float()}, TypeError, "got torch.float32"),
        ({"input_ids": ids.to(torch.int16)}, TypeError, "got torch.int16"),
        ({"input_ids": ids + limit}, ValueError, f"input_ids: expected ids from -[0-9]+ to {limit - 1}, got "),
        ({"input_ids": ids - 1000}, ValueError, f"input_ids: expected ids from -[0-9]+ to {limit - 1}, got -"),
        ({"attention_mask": mask.bool()}, TypeError, "attention_mask: expected .* 0 and 1, got torch.bool"),
        ({"attention_mask": mask.tolist()}, TypeError, "attention_mask: expected .* 0 and 1, got list"),
        ({"input_ids": ids[0]}, ValueError, r"expected \[batch, 16\] .* got \[16\]"),
        ({"input_ids": ids[:, :9]}, ValueError, r"processor\(text, max_length=16\)\), got \[2, 9\]"),
        ({"input_ids": ids[:0]}, ValueError, r"got \[0, 16\]"),
        (
            {"attention_mask": mask[:1]},
            ValueError,
            r"expected the shape of input_ids, \[2, 16\], got \[1, 16\]",
        ),
        ({"attention_mask": mask * torch.tensor([[1], [0]])}, ValueError, r"got an empty text in row \[1\]"),
    ]:
        inputs = {**INPUTS, **bad}
        with trace_stages(fast) as trace, pytest.raises(error, match=message):
            fast.generate(**inputs)
        assert not trace.outputs
        with pytest.raises(error, match=message):
            fast.semantic.generate(**inputs, semantic_generation_config=configs.semantic)


def test_ids_that_nobody_reads_may_be_any(small_model, fast):
    """Padding, and what lies beyond the tokens that Bark reads."""
    ids, mask = INPUTS["input_ids"].clone(), INPUTS["attention_mask"]
    ids[mask == 0] = -100
    ids, mask = (torch.nn.functional.pad(given, (0, 3), value=value) for given, value in ((ids, 10**9), (mask, 1)))
    assert_equal_to_stock(small_model, fast, input_ids=ids.int(), attention_mask=mask, do_sample=False)


def test_a_text_that_is_cut_warns(small_model, fast):
    inputs = {k: torch.cat([v, v], dim=1) for k, v in texts(SMALL, [16, 4]).items()}
    with pytest.warns(UserWarning, match="Bark reads 16 text tokens; a text of 32 is cut"):
        assert_equal_to_stock(small_model, fast, **inputs, semantic_max_new_tokens=8)


def test_a_text_that_fits_does_not_warn(fast):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fast.generate(**texts(SMALL, [16]), semantic_max_new_tokens=5)


def test_what_stock_ignores_is_said_once(small_model):
    model = build(SMALL, semantic={"min_eos_p": 0.05})
    fast = accelerated_copy(model)
    with pytest.warns(UserWarning, match="ignores generation_config.semantic_config"):
        assert_equal_to_stock(model, fast, **INPUTS, do_sample=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fast.generate(**INPUTS, semantic_max_new_tokens=5)
    with pytest.warns(UserWarning, match="ignores generation_config="):
        fast.generate(**INPUTS, semantic_max_new_tokens=5, generation_config=model.generation_config)
    given = {"semantic_generation_config": model.generation_config, "coarse_generation_config": 3}
    with pytest.warns(UserWarning, match="ignores semantic_generation_config=;"):
        assert_equal_to_stock(model, fast, **INPUTS, do_sample=True, **given)
    options = {**INPUTS, "do_sample": False, "fine_temperature": None}
    heard = [fast.generate(**options, **g, streamer=AudioStreamer(fast, policy="exact")) for g in ({}, given)]
    assert torch.equal(*heard)


def test_generation_config_without_nested_dicts(small_model):
    fast = accelerated_copy(small_model)
    fast.generation_config = copy.deepcopy(fast.generation_config)
    fast.generation_config.coarse_acoustics_config = None
    with pytest.raises(ValueError, match=r"generation_config.coarse_acoustics_config: expected a dict .* got NoneType"):
        fast.generate(**INPUTS)


@pytest.mark.parametrize("temperature", [0.0, -0.0, math.nan])
def test_fine_temperature(fast, temperature):
    with pytest.raises(
        ValueError, match=rf"fine temperature: expected None or a number other than 0, got {temperature}"
    ):
        fast.generate(**INPUTS, semantic_max_new_tokens=5, fine_temperature=temperature)


@pytest.mark.parametrize(
    "options", [{"semantic_temperature": -1.0, "do_sample": True}, {"semantic_top_k": -2, "do_sample": True}]
)
def test_transformers_own_checks_stay(small_model, fast, options):
    errors = []
    for model in (small_model, fast):
        with pytest.raises(ValueError) as caught:
            model.generate(**INPUTS, **options)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


@pytest.mark.parametrize(
    "name",
    ["temperature", "fine_temperature", "semantic_max_new_tokens", "coarse_top_k", "top_p", "min_eos_p", "num_beams"],
)
def test_numbers_that_are_strings(fast, name):
    with trace_stages(fast) as record, pytest.raises(TypeError, match=f"^{name}: expected a number, got '1'"):
        fast.generate(**INPUTS, **{name: "1"})
    assert record.seconds == {}


def test_a_fine_temperature_is_refused_before_any_work(fast):
    with trace_stages(fast) as trace, pytest.raises(ValueError, match="fine temperature"):
        fast.generate(**INPUTS, temperature=0.0)
    assert trace.seconds == {}


def test_too_many_tokens_for_the_positions():
    model = build(SMALL)
    with torch.no_grad():
        model.semantic.lm_head.weight[EOS] = 0  # never the most likely token
    fast = accelerated_copy(model)
    with pytest.raises(IndexError, match=r"at most 160 positions \(block_size\), got 160 in the cache plus 1"):
        fast.generate(**INPUTS, semantic_max_new_tokens=SMALL.block_size)


def ends_at_once(model):
    with torch.no_grad():
        model.semantic.layernorm_final.weight.zero_()
        model.semantic.layernorm_final.bias = nn.Parameter(torch.ones(model.config.semantic_config.hidden_size))
        model.semantic.lm_head.weight[EOS] = 1.0
    return model


def test_an_immediate_eos_gives_an_empty_waveform():
    """Stock fails in a view of no elements."""
    stock = ends_at_once(build(SMALL))
    with pytest.raises(RuntimeError):
        stock.generate(**INPUTS)
    fast = accelerated_copy(stock)
    audio = fast.generate(**INPUTS)
    assert audio.shape == (2, 0) and audio.dtype == torch.float32
    audio, lengths = fast.generate(**INPUTS, return_output_lengths=True)
    assert audio.shape == (2, 0) and lengths == [0, 0]


def test_one_row_that_ends_at_once(fast):
    """One silent row does not cost the others their sound."""
    codes = torch.randint(0, SMALL.codebook_size, (2, 8, 9))
    with torch.no_grad():
        silent, heard = fast.codec_decode(codes, torch.tensor([0, 9]))
    assert silent.shape == (0,) and heard.shape == (9 * 320,)


def test_nan_weights_are_an_error():
    stock = build(SMALL)
    with torch.no_grad():
        stock.semantic.lm_head.weight[3] = float("nan")
    with pytest.raises(ValueError, match=r"fused_multinomial: expected .* without NaN"):
        accelerated_copy(stock).generate(**INPUTS, do_sample=True)
