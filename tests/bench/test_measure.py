"""What a run of a model gave, stage by stage, and how two runs differ."""

from __future__ import annotations

import pytest
import torch
from support.bark_models import submodels

from bark_accel import accelerate_bark, restore_bark
from bark_accel.bench import measure
from bark_accel.bench.models import fake_inputs, shared_copy
from bark_accel.hf.stage_trace import STAGES, trace_stages

OPTIONS = {"semantic_max_new_tokens": 8}


@pytest.fixture
def tiny(suno_model):
    return shared_copy(suno_model)


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_recorder_leaves_no_trace(tiny, accelerated, fails):
    if accelerated:
        accelerate_bark(tiny)
    owners = [tiny, *submodels(tiny)]
    before = [dict(vars(owner)) for owner in owners]
    inputs = {} if fails else fake_inputs(tiny, "hello")
    try:
        with trace_stages(tiny) as trace:
            tiny.generate(**inputs, **OPTIONS)
    except Exception:
        assert fails
    else:
        assert not fails and set(trace.outputs) == set(trace.seconds) == set(STAGES)
    assert [dict(vars(owner)) for owner in owners] == before
    restore_bark(tiny)


def test_recorder_copies_what_a_later_stage_overwrites(tiny):
    started: list[str] = []
    with trace_stages(tiny, started.append) as trace:
        tiny.generate(**fake_inputs(tiny, "hello"), **OPTIONS, return_output_lengths=True)
    assert started == list(STAGES)
    assert trace.outputs["semantic"].shape == (1, 8)
    assert trace.outputs["coarse"].shape == (1, 24) and trace.outputs["fine"].shape == (1, 8, 12)
    assert [waveform.shape for waveform in trace.outputs["codec"]] == [(12 * 320,)]


def test_differences_are_found():
    tokens = {stage: torch.zeros(1, 4, dtype=torch.int64) for stage in measure.TOKEN_STAGES}
    other = {**tokens, "coarse": torch.tensor([[0, 0, 5, 0]]), "fine": torch.zeros(1, 3)}
    stock, accelerated = (measure.Run({}, 1.0, outputs, 1.0) for outputs in (tokens, other))
    assert measure.token_differences(stock, stock) == []
    coarse, fine = measure.token_differences(stock, accelerated)
    assert coarse == "coarse: 1 of 4 tokens differ, first at [0, 2]" and "shape" in fine


def test_the_gpu_in_use_is_named(monkeypatch):
    """Not the first of two, where the second one runs the model."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index if device else 0}")
    assert measure.machine_facts(torch.device("cuda", 1))["gpu"] == "GPU 1"
    assert measure.machine_facts()["gpu"] == measure.machine_facts(torch.device("cpu"))["gpu"] == "GPU 0"
