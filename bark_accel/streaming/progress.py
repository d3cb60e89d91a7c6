"""Progress of a generation, for a function of the caller or as bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

Told = Callable[[str, int, int], object]
"""Called with a part of a generation, what is done of it, and how much it will be at most."""

UNITS = {"semantic": "token", "coarse": "token", "sound": "frame"}
"""The parts, in their order, and what each is counted in. "sound" is the fine stage and the codec."""


class Progress:
    """Counts the work of one generation. What a part will be at most is exact once the part before it has ended."""

    def __init__(self, tell: Told):
        self._tell = tell
        self._done: dict[str, int] = {}
        self._most: dict[str, int] = {}

    def begin(self, part: str, most: int) -> None:
        """A part begins."""
        self._done[part], self._most[part] = 0, most
        self._tell(part, 0, most)

    def expect(self, part: str, most: int) -> None:
        """It will be another length than was told."""
        if most != self._most[part]:
            self._most[part] = most
            self._tell(part, self._done[part], most)

    def step(self, part: str) -> None:
        """One more is done."""
        self.reach(part, self._done[part] + 1)

    def reach(self, part: str, done: int) -> None:
        """So many are done."""
        if done != self._done[part]:
            self._done[part] = done
            self._most[part] = max(done, self._most[part])
            self._tell(part, done, self._most[part])

    def end(self, part: str) -> None:
        """Nothing more will be done of it; where nothing was counted, all of it is."""
        if self._done[part]:
            self.expect(part, self._done[part])
        else:
            self.complete(part)

    def complete(self, part: str) -> None:
        """All of it is done, if it has begun."""
        if part in self._done:
            self.reach(part, self._most[part])


class Bars:
    """A bar for each part, of text or in a notebook: a function that `Progress` tells."""

    def __init__(self) -> None:
        self._bars: dict[str, Any] = {}

    def __call__(self, part: str, done: int, most: int) -> None:
        if most == 0:
            return
        if part not in self._bars:
            self._bars[part] = tqdm(total=most, desc=part, unit=UNITS[part])
        bar = self._bars[part]
        if bar.total != most:
            bar.total = most
            if hasattr(bar, "container"):  # tqdm's widget takes a new length only together with a new start
                bar.container.children[1].max = most
        bar.update(done - bar.n)
        if done == most:
            bar.close()

    def close(self) -> None:
        """Leave the bars as they stand."""
        for bar in self._bars.values():
            bar.close()


@contextmanager
def part_of(progress: Progress | None, part: str, most: int) -> Iterator[None]:
    """A part that begins and, unless it fails, ends; nothing without somebody to tell."""
    if progress is not None:
        progress.begin(part, most)
    yield
    if progress is not None:
        progress.end(part)


def check_progress(progress: object) -> None:
    """Raise `TypeError` unless this is True, False, None or a function."""
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise TypeError(f"progress: expected True, False or a function, got {progress!r}")


@contextmanager
def reported(progress: Any) -> Iterator[Progress | None]:
    """Count a generation as `progress=` asks for; bars are closed in any case. None: nobody is told."""
    check_progress(progress)
    if progress is None or progress is False:
        yield None
    elif progress is True:
        bars = Bars()
        try:
            yield Progress(bars)
        finally:
            bars.close()
    else:
        yield Progress(progress)
