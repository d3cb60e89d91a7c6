"""Graphs that are kept between calls, each lent to one user at a time."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Graphs(Protocol):
    """Graphs that share a place for what they read and write, as they are kept.

    Attributes
    ----------
    usable : bool
        False while something is being captured and after a failure there, when the memory pool may be inconsistent.
    fault : str, optional
        Why something could not be captured; None where nothing was refused.
    """

    @property
    def usable(self) -> bool: ...

    @property
    def fault(self) -> str | None: ...

    def __len__(self) -> int:
        """Count the graphs."""
        ...


G = TypeVar("G", bound=Graphs)


@dataclass
class KeptGraphs(Generic[G]):
    """Keeps graphs by key, the `most` that were used last. A copied or unpickled one starts empty.

    `what` they hold is for a warning. `fault` says why something could not be captured: from then on nothing is lent,
    until `clear`, so that everybody runs without graphs. `given_up` says, by kind, which graphs that might have been
    faster are not made, and why, until `clear` as well.
    """

    what: str
    most: int
    fault: str | None = None
    given_up: dict[str, str] = field(default_factory=dict)
    _idle: OrderedDict[tuple, G] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __getstate__(self) -> dict:
        return {"what": self.what, "most": self.most}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def count(self) -> int:
        """Graphs held while nobody has them."""
        with self._lock:
            return sum(len(graphs) for graphs in self._idle.values())

    def clear(self) -> None:
        """Give up the graphs that nobody has, and try again what could not be captured."""
        with self._lock:
            self._idle.clear()
            self.fault = None
            self.given_up = {}

    @contextmanager
    def lend(self, key: tuple, make: Callable[[], G | None], *, keep: bool = True) -> Iterator[G | None]:
        """Graphs of a key, made where there are none; None where none can be had. Without `keep` they end with this."""
        if self.fault is not None:
            yield None
            return
        with self._lock:
            graphs = self._idle.pop(key, None)
        graphs = make() if graphs is None else graphs
        if graphs is None:
            yield None
            return
        try:
            yield graphs
        finally:
            if graphs.fault is not None:
                self._refuse(graphs.fault)
            elif graphs.usable and keep:
                with self._lock:
                    self._idle[key] = graphs
                    while len(self._idle) > self.most:
                        self._idle.popitem(last=False)

    def _refuse(self, fault: str) -> None:
        if self.fault is None:
            warnings.warn(
                f"bark_accel: {self.what} could not be captured as a CUDA graph and runs kernel by kernel, "
                f"slower, with the same result: {fault}",
                stacklevel=2,
            )
        self.fault = fault
