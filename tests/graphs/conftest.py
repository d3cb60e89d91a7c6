from __future__ import annotations

import pytest
import torch
from support.call_capturer import CallCapturer

from bark_accel.decoding import cuda_graphs as graphs


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


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)
