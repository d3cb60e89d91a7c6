"""Work that Ctrl-C ends early, and not in vain."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

# Ctrl-C, and what `kill`, `timeout` and job queues send.
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# One that comes sooner after another is the same wish: `timeout` sends two at once.
SAME_WISH_S = 1.0


class _Stopped(KeyboardInterrupt):
    """Raised where one of `SIGNALS` comes."""


class Stopping:
    """A block in which `SIGNALS` end work early and nothing else: what was found can be told whatever comes meanwhile.

    Signals that are ignored outside are so inside. Only in the main thread, to which Python gives the signals.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self._working = False
        self._last: tuple[float, signal.Signals] | None = None

    def __enter__(self) -> Stopping:
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        self._before = {number: its for number, its in handlers.items() if its not in (signal.SIG_IGN, None)}
        for number in self._before:
            signal.signal(number, self._stop)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def until_stopped(self, work: Callable[[], None]) -> signal.Signals | None:
        """Run `work`; return the signal that ended it early, or None."""
        self._working = True
        try:
            work()
        except _Stopped:
            assert self._last is not None
            return self._last[1]
        finally:
            self._working = False
        return None

    def _stop(self, number: int, frame: Any) -> None:
        now, before = time.monotonic(), self._last
        if not self._working or (before is not None and now < before[0] + SAME_WISH_S):
            return
        self._last = now, signal.Signals(number)
        raise _Stopped
