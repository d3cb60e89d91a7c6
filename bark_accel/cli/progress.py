"""Progress of a command: a bar for each part of a generation, or a line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bark_accel.streaming.progress import Progress as Counts
from bark_accel.streaming.progress import Told

from .console import out


def progress_bars() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=out,
    )


@contextmanager
def live_line() -> Iterator[Live]:
    """A line that changes in place; where there is no terminal, it is printed once, as it is at the end."""
    try:
        with Live(console=out, auto_refresh=False) as live:
            yield live
    finally:
        if not out.is_terminal:
            out.line()


class PartBars:
    """A bar for each part of a generation: pass it as `progress=` to `generate`."""

    def __init__(self, progress: Progress, label: str = ""):
        self._progress = progress
        self._label = f"{label:<12}" if label else ""
        self._tasks: dict[str, Any] = {}

    def __call__(self, part: str, done: int, most: int) -> None:
        if part not in self._tasks:
            self._tasks[part] = self._progress.add_task(f"{self._label}{part}", total=most)
        self._progress.update(self._tasks[part], completed=done, total=most)


class StageCounts:
    """Tells of a generation by a model that takes no `progress=`, stock's.

    Pass it as `streamer=` to `generate`, and its `start` as `on_stage` to `trace_stages`. The semantic and coarse
    stages tell a streamer each of their prompts first, then every token. The other two tell nothing.
    """

    def __init__(self, tell: Told, semantic_tokens: int, coarse_per_semantic: float):
        self._progress = Counts(tell)
        self._semantic_tokens = semantic_tokens
        self._coarse_per_semantic = coarse_per_semantic
        self._stage = ""
        self._tokens = 0
        self._prompt_is_next = True

    def start(self, stage: str) -> None:
        """End the part of the stage before, begin that of `stage`."""
        if stage == "codec":
            return
        self.close()
        coarse_tokens = round(self._tokens * self._coarse_per_semantic)
        self._stage, self._tokens, self._prompt_is_next = ("sound" if stage == "fine" else stage), 0, True
        most = {"semantic": self._semantic_tokens, "coarse": coarse_tokens}
        self._progress.begin(self._stage, most.get(self._stage, 1))

    def put(self, value: Any) -> None:
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        self._tokens += 1
        self._progress.step(self._stage)

    def end(self) -> None:
        self._prompt_is_next = True

    def close(self) -> None:
        """End the part that is running."""
        if self._stage:
            self._progress.end(self._stage)
