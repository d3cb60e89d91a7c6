"""Waiting for what other threads and processes do, on a machine that may be slow, busy, or stopped for a while."""

from __future__ import annotations

import time
from collections.abc import Callable

LIMIT_S = 300.0
"""Seconds for what must come, however slow the machine: only what hangs takes as long."""


def until(true: Callable[[], object], *, every_s: float = 0.005) -> None:
    """Wait until `true()` is, or fail. A second of each look counts at most: a machine may stand still meanwhile."""
    waited_s, begin = 0.0, time.monotonic()
    while not true():
        assert waited_s < LIMIT_S, f"expected it within {LIMIT_S:.0f} s"
        time.sleep(every_s)
        now = time.monotonic()
        waited_s, begin = waited_s + min(now - begin, 1.0), now
