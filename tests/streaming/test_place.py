"""Where a generation in a thread of its own runs: on the stream, and so on the device, of its caller."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from support.bark_models import SMALL, texts
from support.parity import accelerated_copy

from bark_accel import stream


@pytest.mark.parametrize("initialized", (True, False))
def test_a_stream_runs_on_its_callers_cuda_stream(
    small_model: Any, monkeypatch: pytest.MonkeyPatch, initialized: bool
) -> None:
    entered: list[tuple[str, str]] = []

    @contextmanager
    def on_stream(cuda_stream: str) -> Iterator[None]:
        entered.append((cuda_stream, threading.current_thread().name))
        yield

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialized)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: f"of {threading.current_thread().name}")
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    chunks = stream(accelerated_copy(small_model), **texts(SMALL, [6]), semantic_max_new_tokens=6)
    assert sum(chunk.shape[1] for chunk in chunks) > 0
    caller = threading.current_thread().name
    threads = ["bark_accel.check_0", "bark_accel.stream"] if initialized else []
    assert entered == [(f"of {caller}", thread) for thread in threads]
