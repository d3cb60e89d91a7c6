"""Graphs read weights by address: where these move between calls, no graph is replayed on what was there before."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from patching.test_offload import enable, to_cpu
from support.bark_models import SMALL, texts
from support.call_capturer import CallCapturer
from support.parity import accelerated_copy, assert_equal_to_stock, run

from bark_accel import AudioStreamer, acceleration_report, stream
from bark_accel.decoding import cuda_graphs as graphs
from bark_accel.stages import fine_graphs
from bark_accel.transformer.causal import CausalModel

accelerate = pytest.importorskip("accelerate")
OPTIONS: dict[str, Any] = {"do_sample": True, "semantic_max_new_tokens": 30}


@pytest.fixture(autouse=True)
def _windows_too(monkeypatch: pytest.MonkeyPatch, capturer: CallCapturer) -> None:
    monkeypatch.setattr(fine_graphs, "make_capturer", lambda device: capturer)
    monkeypatch.setattr(fine_graphs, "has_graphs", lambda device: True)


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where the semantic stage's head was in each captured or replayed step; a sub-model that comes is elsewhere."""
    arrive = accelerate.hooks.CpuOffload.pre_forward

    def elsewhere(self: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
        for parameter in module.parameters():
            held.append(parameter.data)  # so that no later one takes its place
            parameter.data = parameter.data.clone()
        return arrive(self, module, *args, **kwargs)

    held: list[torch.Tensor] = []
    seen: list[int] = []
    step = CausalModel.step_logits

    def noted(self: Any, *arguments: Any) -> torch.Tensor:
        seen.append(self.weights.heads[0].weight.data_ptr())
        return step(self, *arguments)

    monkeypatch.setattr(accelerate.hooks.CpuOffload, "pre_forward", elsewhere)
    monkeypatch.setattr(CausalModel, "step_logits", noted)
    return seen


@contextlib.contextmanager
def offloaded(model: Any, **options: Any) -> Iterator[Any]:
    fast = accelerated_copy(copy.deepcopy(model), speculate=False, **options)
    enable(fast, None)
    yield fast


def test_sub_models_that_take_turns_are_captured_anew(
    small_model: Any, capturer: CallCapturer, places: list[int]
) -> None:
    with offloaded(small_model) as fast:
        for seed in (0, 1, 2):
            places.clear()
            before = capturer.captured
            assert_equal_to_stock(small_model, fast, seed, **texts(SMALL, [6]), **OPTIONS)
            assert capturer.captured == before + 3, "semantic, two codebooks, and no window"
            here = {p.data_ptr() for part in (fast.semantic, fast.coarse_acoustics) for p in part.parameters()}
            assert len(set(places)) == 2 and set(places) <= here
        report = acceleration_report(fast)
        assert report.captured_graphs == 0 and report.capture_faults == ()
        assert report.fine_window == "kernel by kernel, its weights are offloaded"


def test_smaller_copies_of_what_moves_are_captured_anew(
    small_model: Any, capturer: CallCapturer, places: list[int]
) -> None:
    plain = accelerated_copy(small_model, weights="int8", cuda_graphs=False)
    with offloaded(small_model, weights="int8") as fast:
        for seed in (0, 1):
            expected, got = (run(m, seed, **texts(SMALL, [6, 4]), **OPTIONS)[0] for m in (plain, fast))
            assert all(torch.equal(got[stage], expected[stage]) for stage in ("semantic", "coarse", "fine"))
        assert acceleration_report(fast).captured_graphs == 0 and capturer.replayed > 0


@pytest.mark.parametrize("offload", (enable, to_cpu))
def test_a_stage_that_was_sent_away_in_the_middle_goes_on(
    small_model: Any, capturer: CallCapturer, places: list[int], offload: Any
) -> None:
    """Interleaved, the coarse stage sends the semantic one off while that has graphs."""
    heard = []
    for moved in (False, True):
        fast = accelerated_copy(copy.deepcopy(small_model), speculate=False)
        if moved:
            offload(fast, None)
        torch.manual_seed(0)
        streamer = AudioStreamer(fast, policy="preview", first_chunk_frames=5, interleave=True)
        heard.append(torch.cat(list(stream(fast, **texts(SMALL, [6]), **OPTIONS, streamer=streamer)), 1))
    assert torch.equal(*heard) and capturer.replayed > 0


def test_a_model_that_was_moved_by_hand_is_captured_anew(small_model: Any, capturer: CallCapturer) -> None:
    """`.to(...)` and back: what was captured before is forgotten in time."""
    fast = accelerated_copy(copy.deepcopy(small_model), speculate=False)
    held = []
    for turn in range(graphs.MAX_KEPT + 2):
        assert_equal_to_stock(small_model, fast, **texts(SMALL, [6]), **OPTIONS)
        assert capturer.captured == (turn + 1) * 4
        for parameter in fast.parameters():
            held.append(parameter.data)
            parameter.data = parameter.data.clone()
    assert acceleration_report(fast).captured_graphs == 3 * graphs.MAX_KEPT + fine_graphs.MAX_KEPT
