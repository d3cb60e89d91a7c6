"""CUDA graphs without CUDA: what records is replaced, everything around it is the real thing."""

from __future__ import annotations

from collections.abc import Callable

from torch import Generator


class CallRecorder:
    """Stands in for `graphs.CudaRecorder`: records by keeping the step, replays by calling it.

    Like a graph it repeats the step of then, on the tensors of then, and like a capture it ran the step once before.
    """

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def record(self, step: Callable[[], None], generator: Generator | None) -> Callable[[], None]:
        step()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            step()

        return replay
