"""Work that Ctrl-C ends early, and not in vain."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

# Ctrl-C, and what `kill`, `timeout` and job queues send.
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Stopped(KeyboardInterrupt):
    """Raised where one of `SIGNALS` comes."""


def until_stopped(work: Callable[[], None]) -> signal.Signals | None:
    """Run `work`; return the signal that ended it early, or None.

    Only in the main thread, to which Python gives the signals.
    """
    came: list[int] = []

    def stop(number: int, frame: Any) -> None:
        came.append(number)
        raise _Stopped

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        work()
    except _Stopped:
        return signal.Signals(came[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return None
