from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.call_capturer import CallCapturer
from support.philox import PhiloxGenerator, draw_next

from bark_accel.decoding import cuda_graphs as graphs
from bark_accel.decoding import step_graphs
from bark_accel.ops import cpu, native


@pytest.fixture
def capturer(monkeypatch: pytest.MonkeyPatch) -> CallCapturer:
    """What every generation of the test captures with, on the CPU."""
    double = CallCapturer()
    monkeypatch.setattr(graphs, "make_capturer", lambda device: double)
    return double


@pytest.fixture
def like_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the plain-torch ops take the path of a device whose data cannot be looked at."""
    monkeypatch.setattr("bark_accel.ops.checks.on_host", lambda tensor: False)


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> PhiloxGenerator:
    """What everything draws from, as on a GPU."""
    source = PhiloxGenerator(7)

    def fused_multinomial(logits: torch.Tensor, given: Any, vocab_size: int, *rules: Any) -> torch.Tensor:
        assert given is None
        return native.fused_sample(logits, source.noise(len(logits), vocab_size), *rules)

    ops = replace(cpu.OPS, fused_multinomial=fused_multinomial, draw_next=draw_next)
    monkeypatch.setattr(cpu, "OPS", ops)
    monkeypatch.setattr(step_graphs, "default_generator", lambda device: source)
    monkeypatch.setattr(step_graphs, "follows_torch", lambda device, draw: True)
    return source


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)
