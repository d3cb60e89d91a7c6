"""Numbers as sliders, JSON and numpy give them: taken where stock takes them, one clear error elsewhere."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import transformers
from support.bark_models import SMALL, preset, texts
from support.parity import accelerated_copy, assert_equal_to_stock

from bark_accel import AudioStreamer, long_form
from bark_accel._arguments import whole_number
from bark_accel.bench.models import WordProcessor
from bark_accel.hf.compat import TESTED_VERSIONS
from bark_accel.hf.configs import sample_rate
from bark_accel.hf.stage_trace import trace_stages

ONE, THREE = texts(SMALL, [5]), texts(SMALL, [3, 16, 7])
SHORT = {"semantic_max_new_tokens": 9}
NUMBERS = {
    "a slider's whole number": {"semantic_max_new_tokens": 20.0},
    "half a token": {"semantic_max_new_tokens": 3.5},
    "less than a token": {"semantic_max_new_tokens": 0.5},
    "numpy's whole number": {"semantic_max_new_tokens": np.int64(20)},
    "numpy's float": {"semantic_max_new_tokens": np.float32(20.5)},
    "numpy's temperatures": {**SHORT, "semantic_temperature": np.float64(0.7), "fine_temperature": np.float32(0.7)},
    "a whole temperature": {**SHORT, "fine_temperature": 2},
    "an infinite temperature": {**SHORT, "fine_temperature": math.inf},
    "a negative temperature": {**SHORT, "fine_temperature": -0.7},
    "the negative infinite one": {**SHORT, "fine_temperature": -math.inf},
    "numpy's top_p": {**SHORT, "top_p": np.float32(0.5)},
    "numpy's min_eos_p": {"semantic_max_new_tokens": 40, "min_eos_p": np.float64(0.01)},
    "a min_eos_p that nothing is above": {"semantic_max_new_tokens": 40, "min_eos_p": math.nan},
    "a number for do_sample": {**SHORT, "semantic_do_sample": 1, "coarse_do_sample": 0},
    "several end tokens": {"semantic_max_new_tokens": 40, "semantic_eos_token_id": [SMALL.semantic_vocab, 7]},
    "numbers of which a stage has others": {**SHORT, "semantic_top_k": 2**70, "coarse_temperature": 1e-38},
    "whole floats": {**SHORT, "coarse_suppress_tokens": [float(i) for i in range(100, 237, 2)]},
    "whole floats at first": {**SHORT, "semantic_begin_suppress_tokens": [float(i) for i in range(0, 112, 2)]},
    "no ids at all": {**SHORT, "coarse_suppress_tokens": [], "begin_suppress_tokens": []},
    "numpy's end token": {"semantic_max_new_tokens": 40, "semantic_eos_token_id": np.int64(7)},
}


@pytest.fixture(scope="module")
def pair(small_model):
    return small_model, accelerated_copy(small_model)


@pytest.mark.parametrize("options", NUMBERS.values(), ids=NUMBERS.keys())
@pytest.mark.parametrize("inputs", [ONE, THREE], ids=["one row, with drafts", "three rows"])
def test_what_stock_takes(pair, inputs, options):
    assert_equal_to_stock(*pair, **inputs, **{"do_sample": True, **options})


WRONG = [
    {"temperature": math.inf},
    {"coarse_top_k": True},
    {"semantic_temperature": 1e-45},
    {"coarse_temperature": 1e39},
    {"coarse_suppress_tokens": [True]},
    {"semantic_begin_suppress_tokens": [True]},
]
if transformers.__version__ == TESTED_VERSIONS[-1]:  # older ones take it, or have it not
    WRONG += [{"semantic_prefill_chunk_size": 0}, {"coarse_prefill_chunk_size": 0}]


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_what_stock_fails_at(pair, options):
    """The same error, as Transformers' own object is called."""
    stock, fast = pair[0], accelerated_copy(pair[0], strict=False)
    with pytest.raises((RuntimeError, TypeError)) as expected:
        stock.generate(**ONE, **SHORT, do_sample=True, **options)
    with pytest.raises(expected.type) as got:
        fast.generate(**ONE, **SHORT, do_sample=True, **options)
    assert str(got.value) == str(expected.value)


def test_no_limit_at_all(pair):
    """Only the end token ends it."""
    options = {"do_sample": True, "min_eos_p": 0.01, "semantic_max_new_tokens": math.inf}
    assert assert_equal_to_stock(*pair, **ONE, **options)["semantic"].shape[1] > 1


@pytest.mark.parametrize("length", [{}, {"max_length": 40}], ids=str)
def test_a_config_without_a_limit(small_model, length):
    """Transformers' own length holds, which warnings, progress and long texts ask for, too."""
    model = copy.deepcopy(small_model)
    model.generation_config = copy.deepcopy(model.generation_config)
    model.generation_config.semantic_config |= {"max_new_tokens": None, **length}
    fast, told = accelerated_copy(model), []
    assert_equal_to_stock(model, fast, **ONE, do_sample=True)
    fast.generate(**ONE, progress=lambda *said: told.append(said))
    assert told
    if length:
        text = {"processor": WordProcessor(fast), "text": "One two."}
        pytest.importorskip("sentencex")
        assert long_form(fast, seed=3, **text).waveform().numel()


@pytest.mark.parametrize("tokens", [20.0, 3.5])
def test_streams(pair, tokens):
    fast = pair[1]
    lengths = []
    for count in (tokens, math.ceil(tokens)):
        torch.manual_seed(0)
        streamer = AudioStreamer(fast, first_chunk_frames=np.int64(5), max_chunk_frames=np.int32(9))
        audio = fast.generate(**ONE, semantic_max_new_tokens=count, streamer=streamer)
        lengths.append(audio)
    assert torch.equal(*lengths) and lengths[0].shape[1] > 0


def test_a_temperature_given_as_text(pair):
    with pytest.raises(TypeError, match=r"fine_temperature: expected a number, got '0\.7'"):
        pair[1].generate(**ONE, **SHORT, fine_temperature="0.7")


COUNTS = ["first_chunk_frames", "max_chunk_frames", "lookahead_frames", "max_queued_chunks"]


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_a_streamer(pair, name):
    fast = pair[1]
    default = getattr(AudioStreamer(fast), name)
    for kind in (np.int64, np.uint16, torch.tensor):
        value = getattr(AudioStreamer(fast, **{name: kind(default)}), name)
        assert value == default and type(value) is int
    for bad in (5.0, np.float64(5), True, "5", None, -1, np.int64(-1)):
        with pytest.raises(ValueError, match=rf"{name}: expected a whole number >= \d+, got "):
            AudioStreamer(fast, **{name: bad})


@pytest.mark.parametrize("timeout", [np.float32(0.5), np.int64(2), 3])
def test_the_timeout_of_a_streamer(pair, timeout):
    kept = AudioStreamer(pair[1], timeout=timeout).timeout
    assert kept == timeout and type(kept) is float


def test_counts_of_long_form(pair):
    pytest.importorskip("sentencex")
    fast = pair[1]
    options = {**SHORT, "processor": WordProcessor(fast), "text": "One two. Three four."}
    expected = long_form(fast, seed=3, batch_size=2, **options).waveform()
    assert torch.equal(long_form(fast, seed=np.int64(3), batch_size=np.int8(2), **options).waveform(), expected)
    for name, bad in (("seed", 3.0), ("seed", -1), ("batch_size", 0), ("batch_size", True)):
        with pytest.raises(ValueError, match=rf"{name}: expected a whole number >= \d, got {bad}"):
            long_form(fast, **options, **{name: bad})


def test_whole_numbers():
    assert whole_number("n", np.uint8(3), 3) == 3
    with pytest.raises(ValueError, match=r"n: expected a whole number >= 3, got 2"):
        whole_number("n", 2, 3)


@pytest.mark.parametrize("eos", [[100, 7], None])
@pytest.mark.parametrize("history", [None, preset(SMALL, 20, 30)], ids=["no preset", "preset"])
def test_end_tokens_of_the_config(small_model, eos, history):
    """Stock fails to count up to a list."""
    model = copy.deepcopy(small_model)
    model.generation_config = copy.deepcopy(model.generation_config)
    model.generation_config.semantic_config["eos_token_id"] = eos
    with pytest.raises((TypeError, RuntimeError)):
        model.generate(**ONE)
    fast = accelerated_copy(model)
    with trace_stages(fast) as record, pytest.raises(ValueError, match=r"eos_token_id of the semantic .*expected one"):
        fast.generate(**ONE, history_prompt=history)
    assert record.seconds == {}


def test_no_sample_rate(small_model):
    """Stock never reads it; the codec has its own."""
    model = copy.deepcopy(small_model)
    model.generation_config = copy.deepcopy(model.generation_config)
    model.generation_config.sample_rate = None
    fast = accelerated_copy(model)
    assert_equal_to_stock(model, fast, **ONE, **SHORT)
    assert AudioStreamer(fast).sampling_rate == sample_rate(fast) == model.config.codec_config.sampling_rate == 24_000
    fast.generation_config.sample_rate = 16_000
    assert AudioStreamer(fast).sampling_rate == 16_000
