"""Captures a step as a CUDA graph, after PyTorch's notes on graphs, memory pools and generators."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Generator

from bark_accel.ops.cuda_streams import OwnStream, shared_stream

# Two captures at once would see each other's synchronisations.
_capture_lock = threading.Lock()


class Capturer(Protocol):
    """Turns a step into something that can be repeated without it."""

    def capture(self, step: Callable[[], None], generator: Generator | None) -> Callable[[], None]:
        """Run `step` once, then capture it; returns what repeats it, drawing from `generator`'s state of then."""
        ...


class GraphCapturer:
    """Captures on one device. Its graphs share scratch memory: no two of them may run at the same time."""

    def __init__(self, device: torch.device):
        self._device = device
        # For cuBLAS keeps one workspace a stream: graphs of two capturers may run side by side.
        self._own = OwnStream(device)
        self._warm_up_stream = shared_stream(device, "warm-up")
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, step: Callable[[], None], generator: Generator | None) -> Callable[[], None]:
        """Raises `RuntimeError` where the step cannot be captured."""
        with _capture_lock, torch.cuda.device(self._device):
            # Elsewhere than on the capturing stream, so that what is allocated once a stream is part of the pool.
            side, current = self._warm_up_stream, torch.cuda.current_stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                step()
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            if generator is not None:
                graph.register_generator_state(generator)
            # thread_local: other threads may allocate meanwhile. The outer block: torch's leaves the thread on the
            # capturing stream where a capture fails to begin or to end.
            with (
                torch.cuda.stream(current),
                torch.cuda.graph(graph, pool=self._pool, stream=self._own.stream, capture_error_mode="thread_local"),
            ):
                step()
        return graph.replay


def why_not(error: BaseException) -> str:
    """Say in a line why a capture failed: by the first error, which those of its end hide."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def has_graphs(device: torch.device) -> bool:
    """Tell whether a device has CUDA graphs."""
    return device.type == "cuda"


def make_capturer(device: torch.device) -> Capturer | None:
    """Return an object that captures graphs on `device`, or None if the device has no graphs."""
    return GraphCapturer(device) if has_graphs(device) else None
