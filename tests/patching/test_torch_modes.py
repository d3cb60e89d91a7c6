"""Equality under torch's settings for the whole process: another default dtype, inference mode, deterministic ops."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache

import pytest
import torch
from support.bark_models import SMALL, SUNO, build, preset, stage_configs, texts
from support.parity import (
    TOKEN_STAGES,
    accelerated_copy,
    assert_equal_to_stock,
    assert_same_return,
    assert_same_tokens,
    run,
)

from bark_accel import AudioStreamer, acceleration_report
from bark_accel.hf.specs import coarse_spec
from bark_accel.hf.stage_trace import trace_stages
from bark_accel.stages.coarse import row_lengths

SAMPLED = {"do_sample": True, "temperature": 0.7, "fine_temperature": 0.5}
CASES = {
    "greedy": {},
    "sampled": SAMPLED,
    "top_k and top_p": {**SAMPLED, "top_k": 20, "top_p": 0.6},
    "min_eos_p": {"do_sample": True, "min_eos_p": 0.01},
    "output lengths": {"return_output_lengths": True},
    "a preset": {**SAMPLED, "history_prompt": preset(SMALL, 20, 30)},
}
DTYPES = [torch.bfloat16, torch.float16, torch.float64]
SHORT = {"semantic_max_new_tokens": 45}


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def stocks(small_model):
    """What stock gives with the default of float32, by case and rows."""

    @cache
    def stocks(case, *rows):
        return run(small_model, 0, **texts(SMALL, rows), **SHORT, **CASES[case])

    return stocks


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rows", [[5], [3, 16, 7]], ids=["one row", "three rows"])
def test_default_dtypes(small_model, stocks, dtype, case, rows):
    """What stock gives with the default of float32: with others it counts a row's frames in them, and wrongly."""
    inputs = {**texts(SMALL, rows), **SHORT, **CASES[case]}
    expected, expected_return, expected_state = stocks(case, *rows)
    # The first generation of this model: what it keeps is made under the other default.
    fast = accelerated_copy(small_model)
    with default_dtype(dtype):
        got, got_return, got_state = run(fast, 0, **inputs)
        assert_same_tokens("semantic", run(small_model, 0, **inputs)[0]["semantic"], got["semantic"])
    for stage in TOKEN_STAGES:
        assert_same_tokens(stage, expected[stage], got[stage])
    assert_same_return(expected_return, got_return)
    assert torch.equal(expected_state, got_state)
    assert_equal_to_stock(small_model, fast, ran=stocks(case, *rows), **inputs)
    assert acceleration_report(fast).fallbacks == ()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_is_counted_in_float32(suno_model, dtype):
    """Whatever its length; stock's 133 tokens are 200 frames in bfloat16."""
    configs = stage_configs(suno_model)
    spec = coarse_spec(configs["semantic_generation_config"], configs["coarse_generation_config"], SUNO.codebook_size)
    tokens = torch.ones(SUNO.max_new_tokens, SUNO.max_new_tokens, dtype=torch.int64).tril()
    tokens = tokens.masked_fill(tokens == 0, spec.semantic_pad_token)
    expected = row_lengths(spec, tokens)
    assert expected[132] == 2 * 199
    with default_dtype(dtype):
        assert torch.equal(row_lengths(spec, tokens), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{"weights": "int8"}, {"weights": "float16"}, {"backend": "torch"}], ids=str)
@pytest.mark.parametrize("rows", [[5], [3, 16, 7]], ids=["one row", "three rows"])
def test_default_dtypes_of_other_weights_and_ops(small_model, dtype, options, rows):
    inputs = {**texts(SMALL, rows), **SAMPLED, **SHORT}
    expected = run(accelerated_copy(small_model, **options), 0, **inputs)[1]
    with default_dtype(dtype):
        assert torch.equal(run(accelerated_copy(small_model, **options), 0, **inputs)[1], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("policy", ["exact", "low_latency", "preview"])
@pytest.mark.parametrize("options", [{}, {"coarse_no_repeat_ngram_size": 3}], ids=["ours", "stock's coarse loop"])
def test_default_dtypes_of_streams(small_model, dtype, policy, options):
    """Stock's own loop may count one frame more or less there, but a stream ends."""
    fast = accelerated_copy(small_model, strict=False)

    def streamed():
        torch.manual_seed(0)
        streamer = AudioStreamer(fast, policy=policy, first_chunk_frames=12, max_queued_chunks=100)
        audio = fast.generate(**texts(SMALL, [5, 9]), **SAMPLED, **SHORT, **options, streamer=streamer)
        assert torch.equal(torch.cat(list(streamer), dim=1), audio)
        assert audio.dtype == torch.float32
        return audio

    expected = streamed()
    with default_dtype(dtype):
        got = streamed()
    if options:
        assert abs(got.shape[1] - expected.shape[1]) <= 2 * 320
    else:
        assert torch.equal(got, expected)


def test_an_empty_utterance_has_the_models_dtype(small_model):
    fast = accelerated_copy(small_model)
    with default_dtype(torch.bfloat16), torch.no_grad():
        assert fast.codec_decode(torch.zeros(2, 8, 0, dtype=torch.int64)).dtype == torch.float32


@pytest.mark.parametrize("mode", [torch.inference_mode, deterministic])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("rows", [[5], [3, 16, 7]], ids=["one row", "three rows"])
def test_modes(small_model, mode, options, rows):
    fast = accelerated_copy(small_model)
    inputs = {**texts(SMALL, rows), **SHORT, **options}
    with mode():
        assert_equal_to_stock(small_model, fast, **inputs)
    assert_equal_to_stock(small_model, fast, **inputs)


@pytest.mark.parametrize("mode", [torch.inference_mode, deterministic])
@pytest.mark.parametrize("policy", ["exact", "low_latency", "preview"])
def test_modes_of_streams(small_model, mode, policy):
    fast = accelerated_copy(small_model)

    def streamed():
        torch.manual_seed(0)
        streamer = AudioStreamer(fast, policy=policy, first_chunk_frames=12, max_queued_chunks=100)
        return fast.generate(**texts(SMALL, [5, 9]), **SAMPLED, **SHORT, streamer=streamer)

    expected = streamed()
    with mode():
        got = streamed()
    assert torch.equal(got, expected)


@pytest.mark.parametrize("stage", ["semantic", "coarse_acoustics", "fine_acoustics", "codec_model", ""])
def test_a_model_on_the_meta_device(stage):
    fast = accelerated_copy(build(SMALL), strict=False)
    (getattr(fast, stage) if stage else fast).to("meta")
    message = "expected a model with weights, got parameters on the meta device"
    with trace_stages(fast) as trace, pytest.raises(ValueError, match=message):
        fast.generate(**texts(SMALL, [5]), **SHORT)
    assert trace.seconds == {}
