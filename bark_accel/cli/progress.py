"""Progress of a command: a bar for each stage of a generation, or a line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

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


class StageBars:
    """Pass it as `streamer=` to `generate` and its `start` as `on_stage` to `trace_stages`.

    The semantic and coarse stages tell a streamer each of their prompts first, then every token. The other
    two tell nothing: their bars count one step.
    """

    def __init__(self, progress: Progress, label: str, semantic_tokens: int, coarse_per_semantic: float):
        self._progress = progress
        self._label = label
        self._totals = {"semantic": semantic_tokens, "coarse": 0, "fine": 1, "codec": 1}
        self._coarse_per_semantic = coarse_per_semantic
        self._task: Any = None
        self._tokens = 0
        self._prompt_is_next = True

    def start(self, stage: str) -> None:
        """Close the bar of the stage before, open the one of `stage`."""
        self.close()
        if stage == "coarse":
            self._totals["coarse"] = round(self._tokens * self._coarse_per_semantic)
        self._tokens = 0
        self._prompt_is_next = True
        self._task = self._progress.add_task(f"{self._label:<12}{stage}", total=self._totals[stage])

    def put(self, value: Any) -> None:
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        self._tokens += 1
        self._progress.advance(self._task)

    def end(self) -> None:
        self._prompt_is_next = True

    def close(self) -> None:
        """Mark the running stage as done."""
        if self._task is not None:
            total = self._tokens or 1
            self._progress.update(self._task, total=total, completed=total)
            self._task = None
