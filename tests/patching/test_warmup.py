"""The warm-up leaves what the first request needs and nothing else; the report names the step's kernels."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from support.bark_models import SMALL, texts
from support.call_capturer import CallCapturer
from support.parity import accelerated_copy, assert_equal_to_stock

from bark_accel import AudioStreamer, BarkEngine, acceleration_report, stream, warmup
from bark_accel.decoding import cuda_graphs as graphs
from bark_accel.ops import _library, backend
from bark_accel.ops.cuda import OPS
from bark_accel.patches import step_kind, stream_plan
from bark_accel.patches.patched import model_patch

OPTIONS: dict[str, Any] = {"do_sample": True, "temperature": 0.8}


def test_the_first_request_captures_and_allocates_nothing(small_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    capturer = CallCapturer()
    monkeypatch.setattr(graphs, "make_capturer", lambda device: capturer)
    fast = accelerated_copy(small_model, speculate=False)
    state = torch.get_rng_state()
    report = warmup(fast, **texts(SMALL, [6]), **OPTIONS)
    assert torch.equal(torch.get_rng_state(), state)
    captured, kept = capturer.captured, report.kv_cache_bytes
    assert captured == report.captured_graphs == 3 and kept > 0
    assert_equal_to_stock(small_model, fast, **texts(SMALL, [6]), **OPTIONS, semantic_max_new_tokens=40)
    assert capturer.captured == captured and acceleration_report(fast).kv_cache_bytes == kept


def test_the_first_stream_measures_no_speed(small_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plan is made from what the warm-up has measured, for the batch that it was given."""
    fast, state = accelerated_copy(small_model, fit_windows=True), torch.get_rng_state()
    warmup(fast, **texts(SMALL, [6, 3]), **OPTIONS)
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(stream_plan, "measure_speed", None)
    streamer = AudioStreamer(fast)
    assert list(stream(fast, streamer=streamer, **texts(SMALL, [6, 3]), **OPTIONS, semantic_max_new_tokens=40))
    assert streamer.plan is not None and streamer.plan.silence_s is not None
    with pytest.raises(TypeError):
        list(stream(fast, **texts(SMALL, [6]), **OPTIONS))  # another batch
    whole = accelerated_copy(small_model)
    warmup(whole, **texts(SMALL, [6]), **OPTIONS)  # its streams have no plan


def test_no_request_of_an_engine_measures_the_speed(small_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a warm-up. Else one does, and a speed beside other requests is kept for all streams after it."""
    fast = accelerated_copy(small_model, fit_windows=True)
    warmup(fast, **texts(SMALL, [6]))
    with BarkEngine(fast) as engine:
        monkeypatch.setattr(stream_plan, "measure_speed", None)
        assert list(engine.submit(**texts(SMALL, [6]), policy="low_latency", semantic_max_new_tokens=40))


def test_what_cannot_be_warmed_up_is_refused(small_model: Any) -> None:
    with pytest.raises(ValueError, match="warmup: expected an accelerated model"):
        warmup(small_model, **texts(SMALL, [6]))
    fast = accelerated_copy(small_model)
    with pytest.raises(TypeError, match="warmup: expected no streamer"):
        warmup(fast, **texts(SMALL, [6]), streamer=AudioStreamer(fast))


def test_the_environment_turns_graphs_off(small_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    capturer = CallCapturer()
    monkeypatch.setattr(graphs, "make_capturer", lambda device: capturer)
    monkeypatch.setenv("BARK_ACCEL_CUDA_GRAPHS", "0")
    fast = accelerated_copy(small_model, speculate=False)
    assert_equal_to_stock(small_model, fast, **texts(SMALL, [6]), do_sample=True, semantic_max_new_tokens=12)
    assert capturer.captured == 0
    monkeypatch.setenv("BARK_ACCEL_CUDA_GRAPHS", "off")
    with pytest.raises(ValueError, match="BARK_ACCEL_CUDA_GRAPHS: expected 0 or 1, got 'off'"):
        acceleration_report(fast)


GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    "options, fault, served, known, expected",
    [
        ({}, None, True, True, "compiled kernels; graphs of 8 tokens"),
        ({}, None, True, False, "compiled kernels; graphs of one token, torch's own noise"),
        ({"cuda_graphs": False}, None, True, True, "compiled kernels; one by one, cuda_graphs=False"),
        (
            {"backend": "torch"},
            None,
            True,
            True,
            "plain torch, backend='torch'; graphs of one token, plain torch draws",
        ),
        ({}, "off by 3", True, True, "plain torch, the compiled ones are wrong here: off by 3; graphs of one token"),
        ({}, None, False, True, "plain torch, the library has no kernels for cuda:0; graphs of one token"),
    ],
)
def test_the_report_says_which_step_runs_and_why(
    small_model: Any,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    fault: str | None,
    served: bool,
    known: bool,
    expected: str,
) -> None:
    fast = accelerated_copy(small_model, **options)
    patch = model_patch(fast)
    assert patch is not None
    for module in (backend, step_kind):
        monkeypatch.setattr(module, "native_fault", lambda device: fault)
        monkeypatch.setattr(module, "is_served", lambda device: served)
    monkeypatch.setattr(step_kind, "follows_torch", lambda device, draw: known and draw is OPS.draw_next)
    assert step_kind.step_kind(patch.settings, GPU).startswith(expected)


def test_the_report_says_that_a_step_is_one_kernel(small_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    patch = model_patch(accelerated_copy(small_model))
    assert patch is not None
    for module in (backend, step_kind):
        monkeypatch.setattr(module, "native_fault", lambda device: None)
        monkeypatch.setattr(module, "is_served", lambda device: True)
    monkeypatch.setattr(step_kind, "follows_torch", lambda device, draw: True)
    monkeypatch.setattr(_library.load(), "persistent_step", True)
    said = step_kind.step_kind(patch.settings, GPU)
    kernel = "one compiled kernel for all tokens of a stage or window, of up to four rows"
    assert said == f"{kernel}, else several; graphs of 8 tokens"


def test_the_report_of_a_cpu(small_model: Any, two_threads: None) -> None:
    model, library = accelerated_copy(small_model), _library.load()
    assert "decode step: compiled kernels\n" in str(acceleration_report(model)), "torch's threads"
    library.set_step_threads(fixed=0)
    warmup(model, **texts(SMALL, [4]))
    said = r"decode step: compiled kernels, as many threads a step as take the least time \([12] in the last one\)\n"
    assert re.search(said, str(acceleration_report(model)))
    library.set_step_threads(fixed=1)
    try:
        said = "decode step: compiled kernels, 1 thread a step by BARK_ACCEL_STEP_THREADS\n"
        assert said in str(acceleration_report(model))
    finally:
        library.set_step_threads()
