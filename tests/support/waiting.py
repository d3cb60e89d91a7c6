"""Waiting for what other threads and processes do, on a machine that may be slow, busy, or stopped for a while."""

from __future__ import annotations

import time
from collections.abc import Callable

LIMIT_S = 300.0
"""Seconds for what must come, however slow the machine: only what hangs takes as long."""


def until(true: Callable[[], object], *, every_s: float = 0.005) -> None:
    """Wait until `true()` is. Fails after so many looks, not at a time: a machine that stands still does not look."""
    for _ in range(round(LIMIT_S / every_s)):
        if true():
            return
        time.sleep(every_s)
    raise AssertionError(f"expected it within {LIMIT_S:.0f} s")
