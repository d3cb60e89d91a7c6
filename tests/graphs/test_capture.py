"""Captures are asked for as torch has them: a GPU that is not there, and what is done to its streams."""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
import torch

from bark_accel.decoding import graph_capture as graphs
from bark_accel.ops import cuda_streams


class FakeStream:
    """Notes who waited for whom."""

    def __init__(self, log: list[str], name: str, number: int = 0):
        self._log, self.name, self.cuda_stream = log, name, number

    def wait_stream(self, other: FakeStream) -> None:
        self._log.append(f"{self.name} waits for {other.name}")


@dataclass
class FakeCuda:
    """What happened, and the stream that the thread is on."""

    log: list[str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    graph: Any = field(default_factory=lambda: mock.Mock(spec=["register_generator_state", "replay"]))
    fails_to: str = ""
    given_out: int = 0

    def next_stream(self) -> FakeStream:
        """One of 32 in turn, as torch has it."""
        number, self.given_out = self.given_out % 32, self.given_out + 1
        return FakeStream(self.log, ("capturing", "side")[number] if number < 2 else f"stream {number}", number)

    def __post_init__(self) -> None:
        self.current = FakeStream(self.log, "current")
        self.graph.register_generator_state.side_effect = lambda generator: self.log.append("registered")

    @contextlib.contextmanager
    def on_stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def capture(self, cuda_graph: Any, pool: Any = None, stream: Any = None, capture_error_mode: str = "global") -> Any:
        """As `torch.cuda.graph`, which does not restore the stream where a capture fails to begin or to end."""
        self.asked.append({"pool": pool, "mode": capture_error_mode, "graph": cuda_graph})
        before, self.current = self.current, stream
        self._reach("begin")
        try:
            yield
        finally:
            self._reach("end")
            self.current = before

    def _reach(self, what: str) -> None:
        self.log.append(f"capture {what}s")
        if self.fails_to == what:
            raise RuntimeError(f"CUDA error: could not {what}")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    real = inspect.signature(torch.cuda.graph.__init__).parameters
    assert [*inspect.signature(fake.capture).parameters] == [*real][1:5], "expected the installed torch's signature"
    assert hasattr(torch.cuda.CUDAGraph, "replay")
    monkeypatch.setattr(cuda_streams, "_shared", {})
    monkeypatch.setattr(cuda_streams, "_owned", weakref.WeakSet())
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority=0: fake.next_stream())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: fake.current)
    monkeypatch.setattr(torch.cuda, "stream", fake.on_stream)
    monkeypatch.setattr(torch.cuda, "graph", fake.capture)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: fake.graph)
    return fake


def capture(cuda: FakeCuda, samples: bool) -> Any:
    capturer = graphs.make_capturer(torch.device("cuda", 0))
    assert isinstance(capturer, graphs.GraphCapturer)
    generator = torch.Generator() if samples else None
    return capturer.capture(lambda: cuda.log.append(f"step on {cuda.current.name}"), generator)


@pytest.mark.parametrize("samples", (True, False))
def test_a_capture_is_asked_for_as_torch_has_it(cuda: FakeCuda, samples: bool) -> None:
    replay = capture(cuda, samples)
    assert cuda.log == [
        "side waits for current",
        "step on side",
        "current waits for side",
        *(["registered"] if samples else []),
        "capture begins",
        "step on capturing",
        "capture ends",
    ]
    assert cuda.asked == [{"pool": (0, 7), "mode": "thread_local", "graph": cuda.graph}] and replay is cuda.graph.replay
    assert not graphs._capture_lock.locked() and cuda.current.name == "current"


@pytest.mark.parametrize("what", ("begin", "end"))
def test_a_capture_that_fails_leaves_the_thread_on_its_stream(cuda: FakeCuda, what: str) -> None:
    cuda.fails_to = what
    with pytest.raises(RuntimeError, match=f"could not {what}"):
        capture(cuda, True)
    assert cuda.current.name == "current" and not graphs._capture_lock.locked()


def test_no_two_capturers_have_one_stream(cuda: FakeCuda) -> None:
    """Their graphs may run at the same time, and cuBLAS has one workspace for each stream."""
    device = torch.device("cuda", 0)
    kept = [graphs.GraphCapturer(device) for _ in range(3)]
    passing = {graphs.GraphCapturer(device)._own.stream.cuda_stream for _ in range(100)}  # batch sizes come and go
    kept += [graphs.GraphCapturer(device) for _ in range(8)]
    assert kept[0]._warm_up_stream.cuda_stream not in passing
    assert len({capturer._own.stream.cuda_stream for capturer in kept}) == len(kept)
    assert len({id(capturer._warm_up_stream) for capturer in kept}) == 1


def test_a_stream_is_waited_for_where_a_device_has_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = mock.Mock(spec=["synchronize"])
    monkeypatch.setattr(torch.cuda, "current_stream", {torch.device("cuda", 1): stream}.__getitem__)
    cuda_streams.finish_stream(torch.device("cpu"))
    assert not stream.synchronize.called
    cuda_streams.finish_stream(torch.device("cuda", 1))
    stream.synchronize.assert_called_once_with()
