"""CUDA graphs without CUDA: what captures is replaced, everything around it is the real thing."""

from __future__ import annotations

from collections.abc import Callable

from torch import Generator


class CallCapturer:
    """Stands in for `graph_capture.GraphCapturer`: captures by keeping the step, replays by calling it.

    Like a graph it repeats the step of then, on the tensors of then, and like a capture it ran the step once before.
    """

    def __init__(self) -> None:
        self.captured = 0
        self.replayed = 0

    def capture(self, step: Callable[[], None], generator: Generator | None) -> Callable[[], None]:
        step()
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            step()

        return replay
