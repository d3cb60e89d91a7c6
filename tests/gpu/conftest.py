"""Runs on the GPU where there is one, with the ops for it; else on the CPU with the CPU's, so that no line goes unread.

What only a GPU has is marked `needs_gpu`. With BARK_ACCEL_NEEDS_GPU=1 (`make gpu`) nothing falls back to the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.call_capturer import CallCapturer

from bark_accel.decoding import cuda_graphs as graphs
from bark_accel.ops import native as cpu_ops
from bark_accel.ops._library import cuda_archs
from bark_accel.ops.cuda import OPS as CUDA_OPS
from bark_accel.stages import fine_graphs
from benchmarks.gpu import steps as gpu_steps

HAS_GPU = torch.cuda.is_available() and cuda_archs() is not None


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs_gpu: skipped where there is no GPU, or no library built with CUDA")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = "torch sees no GPU" if cuda_archs() or not torch.cuda.is_available() else "the library has no CUDA kernels"
    for item in items:
        if item.get_closest_marker("needs_gpu") is not None and not HAS_GPU:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _where(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    assert HAS_GPU or not os.environ.get("BARK_ACCEL_NEEDS_GPU"), (
        "expected a GPU and a library built with CUDA: BARK_ACCEL_CUDA=1 python setup.py build_ext --inplace"
    )
    # torch's default: the convolutions of stock's codec round to TF32, and its waveform is no float32 to compare with.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", 0) if HAS_GPU else torch.device("cpu")


@pytest.fixture
def native() -> Any:
    return CUDA_OPS if HAS_GPU else cpu_ops


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs on the CPU too, by a stand-in."""
    if not HAS_GPU:
        for module in (graphs, fine_graphs, gpu_steps):
            monkeypatch.setattr(module, "make_capturer", lambda device: CallCapturer())
        monkeypatch.setattr(fine_graphs, "has_graphs", lambda device: True)
