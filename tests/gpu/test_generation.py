"""Whole generations on the GPU: stock's tokens and random state for the same seed."""

from __future__ import annotations

import functools
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bark_models import SMALL, build, preset, texts
from support.parity import accelerated_copy, assert_same_tokens, run

from bark_accel import AudioStreamer, accelerate_bark, acceleration_report, stream
from bark_accel.decoding import step_graphs
from bark_accel.decoding.rng import default_generator
from bark_accel.ops import step_choice
from bark_accel.ops._library import load
from bark_accel.stages.spec import TOKEN_STAGES

Outcome = tuple[dict[str, Any], torch.Tensor]
LENGTHS = {1: [9], 3: [5, 9, 2]}
pytestmark = pytest.mark.usefixtures("captured")


def inputs(rows: int, device: torch.device) -> dict[str, Any]:
    return {key: value.to(device) for key, value in texts(SMALL, LENGTHS[rows]).items()}


def outcome(model: Any, seed: int, device: torch.device, **kwargs: Any) -> Outcome:
    outputs, _, _ = run(model, seed, **kwargs)
    return outputs, default_generator(device).get_state()


def assert_equal_to_stock(stock: Any, fast: Any, device: torch.device, seed: int = 2, **kwargs: Any) -> None:
    assert_equal_outcomes(outcome(stock, seed, device, **kwargs), outcome(fast, seed, device, **kwargs))


def assert_equal_outcomes(stock: Outcome, ours: Outcome) -> None:
    (expected, expected_state), (got, state) = stock, ours
    for stage in TOKEN_STAGES:
        assert_same_tokens(stage, expected[stage], got[stage])
    assert torch.equal(state, expected_state)


OPTIONS: dict[str, dict[str, Any]] = {
    "sampled": {"do_sample": True},
    "greedy": {"do_sample": False},
    "all options": {"do_sample": True, "min_eos_p": 0.02, "top_k": 20, "top_p": 0.9},
}


@functools.cache
def stock_outcome(device: torch.device, rows: int, options: str, seed: int) -> Outcome:
    """Stock's, once for all that is compared with it: on a GPU it takes most of the time."""
    return outcome(build(SMALL).to(device), seed, device, **inputs(rows, device), **OPTIONS[options])


@pytest.mark.parametrize("cuda_graphs", (True, False), ids=("graphs", "eager"))
@pytest.mark.parametrize("backend", ("native", "torch"))
@pytest.mark.parametrize("rows", tuple(LENGTHS))
@pytest.mark.parametrize("options", tuple(OPTIONS))
def test_float32_tokens_equal_stock(
    device: torch.device, cuda_graphs: bool, backend: str, rows: int, options: str
) -> None:
    fast = accelerated_copy(build(SMALL).to(device), backend=backend, cuda_graphs=cuda_graphs, speculate=False)
    for seed in (2, 3):
        got = outcome(fast, seed, device, **inputs(rows, device), **OPTIONS[options])
        assert_equal_outcomes(stock_outcome(device, rows, options, seed), got)
    report = acceleration_report(fast)
    assert (report.captured_graphs > 0) == cuda_graphs and report.capture_faults == ()
    assert cuda_graphs or report.fine_window == "kernel by kernel, cuda_graphs=False"


@pytest.mark.needs_gpu
@pytest.mark.parametrize("rows", tuple(LENGTHS))
@pytest.mark.parametrize("options", tuple(OPTIONS))
@pytest.mark.parametrize("weights", ("same", "float16", "int8"))
def test_many_tokens_a_kernel_are_those_of_graphs(device: torch.device, weights: str, options: str, rows: int) -> None:
    """Not one token differs, nor does a launch say that it does."""
    model = build(SMALL).to(device)
    arguments = {**inputs(rows, device), **OPTIONS[options]}
    expected = outcome(accelerated_copy(model, weights=weights), 2, device, **arguments)
    load().set_persistent_step(True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*many tokens in one CUDA kernel")
            got = outcome(accelerated_copy(model, weights=weights), 2, device, **arguments)
    finally:
        load().set_persistent_step(False)
    assert_equal_outcomes(expected, got)


@pytest.mark.needs_gpu
def test_a_trial_chooses_the_step(device: torch.device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = build(SMALL).to(device)
    arguments = {**inputs(1, device), "do_sample": True, "semantic_max_new_tokens": 30}
    expected = outcome(accelerated_copy(model), 2, device, **arguments)
    monkeypatch.setenv(step_choice.VARIABLE, "trial")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(step_choice, "_made", {})
    fast = accelerated_copy(model)
    assert_equal_outcomes(expected, outcome(fast, 2, device, **arguments))
    chosen = step_choice.made()
    assert len(chosen) == len(list((tmp_path / "bark_accel").iterdir())) == 1
    assert str(next(iter(chosen.values()))) in acceleration_report(fast).decode_step


def test_a_voice_preset(device: torch.device) -> None:
    stock = build(SMALL).to(device)
    fast = accelerated_copy(stock, speculate=False)
    history = {k: v.to(device) for k, v in preset(SMALL, 30, 60).items()}
    options: dict[str, Any] = {"do_sample": True, "semantic_max_new_tokens": 30}
    assert_equal_to_stock(stock, fast, device, **inputs(1, device), **options, history_prompt=history)


def test_graphs_follow_batches_dtypes_and_weights(device: torch.device) -> None:
    stock = build(SMALL).to(device)
    fast = accelerated_copy(stock, speculate=False)
    options: dict[str, Any] = {"do_sample": True, "semantic_max_new_tokens": 30}
    for rows in (1, 3, 1):
        assert_equal_to_stock(stock, fast, device, **inputs(rows, device), **options)
    for model in (stock, fast):
        model.semantic.lm_head.weight = torch.nn.Parameter(model.semantic.lm_head.weight.roll(1, 0).contiguous())
        model.coarse_acoustics.lm_head.weight.data.copy_(model.coarse_acoustics.lm_head.weight.roll(2, 0))
    assert_equal_to_stock(stock, fast, device, **inputs(1, device), **options)
    fast.half()
    eager = accelerated_copy(fast, cuda_graphs=False, speculate=False)
    expected, got = (outcome(m, 1, device, **inputs(1, device), **options)[0] for m in (eager, fast))
    assert torch.equal(got["coarse"], expected["coarse"])


def test_the_look_for_the_end_comes_every_few_tokens(device: torch.device) -> None:
    """And what was drawn beyond it is given back to the generator."""
    stock = build(SMALL).to(device)
    fast = accelerated_copy(stock, speculate=False)
    seen = set()
    for seed in (2, 3, 4, 5):
        assert_equal_to_stock(stock, fast, device, seed, **inputs(1, device), do_sample=True, min_eos_p=0.02)
        tokens = outcome(fast, seed, device, **inputs(1, device), do_sample=True, min_eos_p=0.02)[0]["semantic"]
        seen.add(tokens.shape[1] % step_graphs.EOS_CHECK_TOKENS)
    assert len(seen) > 1


@pytest.mark.parametrize("interleave", (False, True))
def test_streams_say_the_same_with_and_without_graphs(device: torch.device, interleave: bool) -> None:
    model, waveforms = build(SMALL).to(device), []
    for cuda_graphs in (True, False):
        fast = accelerated_copy(model, cuda_graphs=cuda_graphs, speculate=False)
        torch.manual_seed(3)
        streamer = AudioStreamer(fast, policy="preview", first_chunk_frames=5, interleave=interleave)
        options: dict[str, Any] = {"do_sample": True, "semantic_max_new_tokens": 40}
        waveforms.append(fast.generate(**inputs(1, device), **options, streamer=streamer))
    torch.testing.assert_close(*waveforms, rtol=0, atol=1e-5)


@pytest.mark.needs_gpu
def test_a_stream_waits_for_what_its_caller_has_queued(device: torch.device) -> None:
    """On a CUDA stream of the caller's, the inputs are not there yet when the generation begins."""
    fast, given = accelerated_copy(build(SMALL).to(device)), inputs(1, device)
    late = {key: torch.zeros_like(value) for key, value in given.items()}
    options: dict[str, Any] = {"do_sample": False, "semantic_max_new_tokens": 20}
    expected = torch.cat(list(stream(fast, **given, **options)), dim=1)
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        for key, value in given.items():
            late[key].copy_(value)
        got = torch.cat(list(stream(fast, **late, **options)), dim=1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_two_threads_on_streams_of_their_own(device: torch.device) -> None:
    """Greedy: they would share one random generator, with stock too."""
    model = build(SMALL).to(device)
    fast = accelerated_copy(model, speculate=False)
    options: dict[str, Any] = {"do_sample": False, "semantic_max_new_tokens": 30}
    expected = {rows: model.generate(**inputs(rows, device), **options) for rows in LENGTHS}
    got: dict[int, list[torch.Tensor]] = {rows: [] for rows in LENGTHS}

    def work(rows: int) -> None:
        given = inputs(rows, device)
        for _ in range(3):
            got[rows].append(fast.generate(**{k: v.clone() for k, v in given.items()}, **options))

    def on_own_stream(rows: int) -> None:
        if device.type == "cpu":
            work(rows)
            return
        with torch.cuda.stream(torch.cuda.Stream()):
            work(rows)
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=on_own_stream, args=(rows,)) for rows in LENGTHS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rows in LENGTHS:
        assert len(got[rows]) == 3
        for waveform in got[rows]:
            torch.testing.assert_close(waveform, expected[rows], rtol=0, atol=1e-5)


@pytest.mark.needs_gpu
def test_a_graphed_token_allocates_nothing(device: torch.device) -> None:
    fast = accelerated_copy(build(SMALL).to(device))
    options: dict[str, Any] = {"do_sample": True}
    counts = []
    for tokens in (20, 20, 60):
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        fast.semantic.generate(**inputs(1, device), **semantic_config(fast), **options, max_new_tokens=tokens)
        counts.append(torch.cuda.memory_stats()["allocation.all.allocated"] - before)
    assert counts[2] - counts[1] <= 3 * 40 / step_graphs.EOS_CHECK_TOKENS  # a few at each look for the end


def semantic_config(model: Any) -> dict[str, Any]:
    from support.bark_models import stage_configs

    return {"semantic_generation_config": stage_configs(model)["semantic_generation_config"]}


@pytest.mark.parametrize("cuda_graphs", (True, False), ids=("graphs", "eager"))
@pytest.mark.parametrize("backend", ("native", "torch"))
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_16_bit_models_run(device: torch.device, dtype: torch.dtype, backend: str, cuda_graphs: bool) -> None:
    model = accelerated_copy(build(SMALL).to(dtype).to(device), backend=backend, cuda_graphs=cuda_graphs)
    assert torch.isfinite(model.generate(**inputs(1, device))).all()


@pytest.mark.parametrize("backend", ("native", "torch"))
@pytest.mark.parametrize("weights", ("float16", "bfloat16", "int8"))
def test_smaller_weights_run(device: torch.device, weights: str, backend: str) -> None:
    model = accelerated_copy(build(SMALL).to(device), backend=backend, weights=weights)
    assert torch.isfinite(model.generate(**inputs(1, device))).all()


@pytest.mark.parametrize("backend", ("native", "torch"))
def test_scores_that_are_not_numbers_are_refused(device: torch.device, backend: str) -> None:
    model = accelerated_copy(build(SMALL).to(device), backend=backend, speculate=False)
    model.coarse_acoustics.lm_head.weight.data[SMALL.semantic_vocab + SMALL.codebook_size + 3] = torch.nan
    with pytest.raises(ValueError, match=r"without NaN .* got one in row 0"):
        model.generate(**inputs(1, device))


@pytest.mark.needs_gpu
@pytest.mark.parametrize("weights", ("same", "int8"))
def test_offloaded_models_stay_fast(weights: str) -> None:
    """The sub-models take turns on the GPU, and nothing of them stays there."""
    pytest.importorskip("accelerate")
    stock, fast = build(SMALL), accelerate_bark(build(SMALL), strict=True, weights=weights)
    for model in (stock, fast):
        model.enable_cpu_offload()
    given: dict[str, Any] = {**inputs(1, torch.device("cuda", 0)), "semantic_max_new_tokens": 12}
    for _ in range(2):  # where the sub-models lie is another the second time
        expected, got = (run(model, 0, **given)[0] for model in (stock, fast))
        if weights == "same":
            assert_same_tokens("coarse", expected["coarse"], got["coarse"])
        assert {p.device.type for p in fast.parameters()} == {"cpu"}
        assert not any(patch.conversions.kept() for patch in (fast.semantic.generate.__self__,))
    assert acceleration_report(fast).fallbacks == ()
