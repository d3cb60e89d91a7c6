"""Whole generations over captured steps: stock's tokens and random state."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from support.bark_models import SMALL, SUNO, preset, texts
from support.call_capturer import CallCapturer
from support.parity import accelerated_copy, assert_equal_to_stock, assert_same_run, run
from transformers import StoppingCriteria

from bark_accel import AudioStreamer, accelerate_bark, acceleration_report, free_memory, stream
from bark_accel.decoding import cuda_graphs as graphs
from bark_accel.decoding import step_graphs

GRAPHED: dict[str, Any] = {"speculate": False}
SAMPLED = {"do_sample": True, "semantic_max_new_tokens": 30}
OPTIONS = {
    "sampled": SAMPLED,
    "greedy": {"do_sample": False, "semantic_max_new_tokens": 19},
    "ends early": {"do_sample": True, "min_eos_p": 0.02},
    "all options": {**SAMPLED, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "fine_temperature": 0.5},
    "one token": {"do_sample": True, "semantic_max_new_tokens": 1},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("lengths", ([6], [4, 9, 2]), ids=("one row", "three rows"))
def test_tokens_and_generator_are_stocks(
    small_model: Any, capturer: CallCapturer, lengths: list[int], options: dict[str, Any]
) -> None:
    fast = accelerated_copy(small_model, **GRAPHED)
    for seed in (0, 4, 7):
        assert_equal_to_stock(small_model, fast, seed, **texts(SMALL, lengths), **options)
    assert capturer.replayed > 0 and acceleration_report(fast).captured_graphs > 0


@pytest.mark.usefixtures("like_a_device")
@pytest.mark.parametrize("lengths", ([6], [4, 9, 2]), ids=("one row", "three rows"))
def test_over_plain_torch_ops_that_never_look_at_data(
    small_model: Any, capturer: CallCapturer, lengths: list[int]
) -> None:
    fast = accelerated_copy(small_model, backend="torch")
    assert_equal_to_stock(small_model, fast, **texts(SMALL, lengths), **SAMPLED)
    assert capturer.replayed > 0


def test_windows_that_move_with_a_voice_preset(small_model: Any, capturer: CallCapturer) -> None:
    fast = accelerated_copy(small_model, **GRAPHED)
    history = preset(SMALL, 30, 60)
    assert_equal_to_stock(small_model, fast, **texts(SMALL, [5]), history_prompt=history, **SAMPLED)
    assert capturer.replayed > 0


def test_sunos_layout(suno_model: Any, capturer: CallCapturer) -> None:
    fast = accelerated_copy(suno_model, **GRAPHED)
    assert_equal_to_stock(suno_model, fast, **texts(SUNO, [7]), **SAMPLED)
    assert capturer.replayed > 0


def test_what_is_drawn_beyond_the_end_leaves_no_trace(small_model: Any, capturer: CallCapturer) -> None:
    """Rows end inside of a block: the test of equality above would be none if they never did."""
    fast = accelerated_copy(small_model, **GRAPHED)
    wasted = 0
    for seed in (0, 4, 7):
        capturer.replayed = 0
        inputs = texts(SMALL, [6])
        semantic = assert_equal_to_stock(small_model, fast, seed, **inputs, **OPTIONS["ends early"])["semantic"]
        coarse_tokens = _coarse_tokens_replayed(fast, seed, inputs)
        wasted += capturer.replayed - coarse_tokens - (semantic.shape[1] - 1)
    assert wasted > 0


def _coarse_tokens_replayed(fast: Any, seed: int, inputs: dict[str, Any]) -> int:
    """Tokens of the coarse stage less the first of each window, which the prompt gives."""
    outputs, _, _ = run(
        accelerate_bark(copy.deepcopy(fast), cuda_graphs=False), seed, **inputs, **OPTIONS["ends early"]
    )
    tokens = outputs["coarse"].shape[1]
    return tokens - -(-tokens // SMALL.window)


@pytest.mark.parametrize("options", [OPTIONS["sampled"], OPTIONS["greedy"]], ids=["sampled", "greedy"])
def test_what_is_forgotten_comes_again(
    small_model: Any, capturer: CallCapturer, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Of each block only the first token is taken."""
    next_token = step_graphs.StepGraphs.next_token

    def forgets(self: Any, last: Any, cache: Any, *rest: Any) -> Any:
        token = next_token(self, last, cache, *rest)
        self.forget(cache)
        return token

    monkeypatch.setattr(step_graphs.StepGraphs, "next_token", forgets)
    assert_equal_to_stock(small_model, accelerated_copy(small_model, **GRAPHED), **texts(SMALL, [4, 9]), **options)
    assert capturer.replayed > 0


class EndsAll(StoppingCriteria):
    """Ends all rows where `n` divides the sum of their ids, of which all are `least` or more; notes what it gets."""

    def __init__(self, n: int, least: int):
        self.n, self.least = n, least
        self.asked: list[tuple[int, list[int]]] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.asked.append((input_ids.shape[1], input_ids[:, -1].tolist()))
        ends = (input_ids[:, -1].sum() % self.n == 0) & (input_ids[:, -1] >= self.least).all()
        return ends.expand(len(input_ids))


@pytest.mark.parametrize("knows_noise", [True, False])
@pytest.mark.parametrize("stage, lengths", [("semantic", [6]), ("semantic", [4, 9]), ("coarse", [4, 9])])
def test_criteria_are_asked_as_tokens_come(
    small_model: Any,
    capturer: CallCapturer,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    lengths: list[int],
    knows_noise: bool,
) -> None:
    """Not as they are drawn: what was drawn behind an end leaves no trace, and graphs are kept for the next call."""
    if not knows_noise:
        monkeypatch.setattr(step_graphs, "follows_torch", lambda *_: False)
    least = {"semantic": 0, "coarse": SMALL.semantic_vocab + SMALL.codebook_size}[stage]
    fast, captured = accelerated_copy(small_model, **GRAPHED), []
    for seed in (0, 4, 7):
        asked, runs = [EndsAll(5, least), EndsAll(5, least)], []
        for model, own in zip((small_model, fast), asked, strict=True):
            options = {**SAMPLED, f"{stage}_stopping_criteria": [own]}
            runs.append(run(model, seed, **texts(SMALL, lengths), **options))
        assert_same_run(*runs)
        assert asked[0].asked == asked[1].asked
        plain = run(small_model, seed, **texts(SMALL, lengths), **SAMPLED)[0]
        assert runs[0][0]["coarse"].shape[1] < plain["coarse"].shape[1], "it ends nothing"
        captured.append(acceleration_report(fast).captured_graphs)
    assert capturer.replayed > 0 and captured[0] > 0 and captured[1] == captured[2]


def test_a_coarse_window_is_one_block(
    small_model: Any, capturer: CallCapturer, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks: list[tuple[bool, int]] = []
    run_block = step_graphs.StepGraphs._run_block

    def counted(self: Any, block: Any, *rest: Any) -> None:
        before = block.cache.position
        run_block(self, block, *rest)
        blocks.append((bool(block.sampler.config.stop_tokens), block.cache.position - before))

    monkeypatch.setattr(step_graphs.StepGraphs, "_run_block", counted)
    fast = accelerated_copy(small_model, **GRAPHED)
    outputs, _, _ = run(fast, 0, **texts(SMALL, [6]), do_sample=False, semantic_max_new_tokens=30)
    tokens = outputs["coarse"].shape[1]
    windows = [min(SMALL.window, tokens - start) for start in range(0, tokens, SMALL.window)]
    assert [n for stops, n in blocks if not stops] == [n - 1 for n in windows if n > 1]
    looks = [n for stops, n in blocks if stops]
    assert set(looks[:-1]) == {step_graphs.EOS_CHECK_TOKENS} and looks[-1] <= step_graphs.EOS_CHECK_TOKENS


def test_long_windows_are_blocks_of_the_same_graphs(
    small_model: Any, capturer: CallCapturer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_graphs, "MAX_BLOCK_TOKENS", 20)
    plain = accelerated_copy(small_model, long_coarse_windows=True, speculate=False, cuda_graphs=False)
    fast = accelerated_copy(small_model, long_coarse_windows=True, **GRAPHED)
    expected, got = (run(m, 0, **texts(SMALL, [6]), **SAMPLED) for m in (plain, fast))
    assert got[0]["coarse"].shape[1] > 2 * SMALL.window
    assert_same_run(expected, got)
    assert capturer.replayed > 0


@pytest.mark.parametrize("interleave", (False, True))
def test_streams_say_the_same(capturer: CallCapturer, small_model: Any, interleave: bool) -> None:
    options: dict[str, Any] = {"do_sample": True, "semantic_max_new_tokens": 40}

    def audio(**accelerated: Any) -> tuple[torch.Tensor, torch.Tensor]:
        model = accelerated_copy(small_model, **GRAPHED, **accelerated)
        torch.manual_seed(3)
        streamer = AudioStreamer(model, policy="preview", first_chunk_frames=5, interleave=interleave)
        waveform = model.generate(**texts(SMALL, [6, 4]), **options, streamer=streamer)
        return waveform, torch.get_rng_state()

    expected, got = audio(cuda_graphs=False), audio()
    assert capturer.replayed > 0
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


def test_a_listener_who_leaves_does_not_spoil_the_graphs(capturer: CallCapturer, small_model: Any) -> None:
    fast = accelerated_copy(small_model, **GRAPHED)
    options: dict[str, Any] = {"do_sample": True, "semantic_max_new_tokens": 60}
    streamer = AudioStreamer(fast, policy="preview", first_chunk_frames=5, max_queued_chunks=1)
    chunks = stream(fast, **texts(SMALL, [6]), **options, streamer=streamer)
    next(chunks)
    chunks.close()
    captured = capturer.captured
    assert_equal_to_stock(small_model, fast, **texts(SMALL, [6]), **options)
    assert capturer.captured == captured


def test_too_many_tokens_fail_as_without_graphs(capturer: CallCapturer, small_model: Any) -> None:
    fast = accelerated_copy(small_model, **GRAPHED)
    options = {"do_sample": False, "semantic_max_new_tokens": SMALL.block_size}
    with pytest.raises(IndexError, match=f"expected at most {SMALL.block_size} positions"):
        fast.generate(**texts(SMALL, [6]), **options, semantic_eos_token_id=None)
    assert capturer.replayed == 0 or acceleration_report(fast).captured_graphs > 0


@pytest.mark.parametrize("backend", ("native", "torch"))
def test_scores_that_are_not_numbers_are_refused(capturer: CallCapturer, small_model: Any, backend: str) -> None:
    fast = accelerated_copy(small_model, backend=backend, **GRAPHED)
    fast.coarse_acoustics.lm_head.weight.data[SMALL.semantic_vocab + SMALL.codebook_size + 3] = torch.nan
    with pytest.raises(ValueError, match=r"without NaN .* got one in row 0"):
        fast.generate(**texts(SMALL, [6]), **SAMPLED)


class Failing(CallCapturer):
    """Refuses to capture after some times."""

    def __init__(self, times: int):
        super().__init__()
        self.times, self.refused = times, 0

    def capture(self, step: Any, generator: Any) -> Any:
        if self.captured == self.times:
            self.refused += 1
            step()
            raise RuntimeError("operation not permitted when stream is capturing")
        return super().capture(step, generator)


@pytest.mark.parametrize("times", (0, 1, 2), ids=("at once", "in the coarse stage", "in a window"))
@pytest.mark.parametrize("options", [OPTIONS["sampled"], OPTIONS["greedy"]], ids=["sampled", "greedy"])
def test_what_cannot_be_captured_runs_one_by_one_and_says_so(
    small_model: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], times: int
) -> None:
    fast, failing = accelerated_copy(small_model, **GRAPHED), Failing(times)
    monkeypatch.setattr(graphs, "make_capturer", lambda device: failing)
    with pytest.warns(UserWarning, match="decode step could not be captured .* same result: RuntimeError: operation"):
        assert_equal_to_stock(small_model, fast, **texts(SMALL, [6]), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert_equal_to_stock(small_model, fast, 1, **texts(SMALL, [6]), **options)
    report = acceleration_report(fast)
    assert len(report.capture_faults) == failing.refused == (2 if times == 0 else 1), "each stage asks once"
    assert all(f"kernel by kernel: {fault}" in str(report) for fault in report.capture_faults)
    failing.times = -1
    free_memory(fast)
    assert_equal_to_stock(small_model, fast, **texts(SMALL, [6]), **options)
    assert acceleration_report(fast).capture_faults == () and failing.captured >= 3


def test_switched_off(small_model: Any, capturer: CallCapturer) -> None:
    fast = accelerated_copy(small_model, cuda_graphs=False, **GRAPHED)
    assert_equal_to_stock(small_model, fast, **texts(SMALL, [6]), **SAMPLED)
    assert capturer.captured == 0
    with pytest.raises(TypeError, match="cuda_graphs: expected True or False, got 'yes'"):
        accelerate_bark(fast, cuda_graphs="yes")  # type: ignore[arg-type]


def test_drafts_go_first(small_model: Any, capturer: CallCapturer) -> None:
    fast = accelerated_copy(small_model, speculate=True)
    assert_equal_to_stock(small_model, fast, **texts(SMALL, [6]), **SAMPLED)
    assert capturer.captured == 0


def test_no_effect_on_a_cpu_and_the_report_says_so(small_model: Any) -> None:
    fast = accelerated_copy(small_model, **GRAPHED)
    assert_equal_to_stock(small_model, fast, **texts(SMALL, [6]), **SAMPLED)
    report = acceleration_report(fast)
    assert graphs.make_capturer(torch.device("cpu")) is None
    assert not report.cuda_graphs and report.captured_graphs == 0
    assert "cuda graphs: no effect, the model is not on an NVIDIA GPU" in str(report)


def test_copies_start_without(small_model: Any, capturer: CallCapturer) -> None:
    fast = accelerated_copy(small_model, **GRAPHED)
    run(fast, 0, **texts(SMALL, [6]), **SAMPLED)
    twin = copy.deepcopy(fast)
    assert acceleration_report(twin).captured_graphs == 0
    assert pickle.loads(pickle.dumps(graphs.GraphStore())).count == 0
    assert_equal_to_stock(small_model, twin, **texts(SMALL, [6]), **SAMPLED)
