"""Deadlines of a server's requests that pass when a test says so, not when a slow machine is late."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import anyio
import pytest

# Modules of the server that end something after its settings' deadline.
_MODULES = ["response", "socket", "spoken_text", *(["wyoming"] if find_spec("wyoming") else [])]


class Deadlines:
    """Stands in the place of `fail_after` in a server; `given_s` has the seconds that each deadline would have."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.given_s: set[float] = set()
        self._are_over = False
        self._open: list[tuple[asyncio.AbstractEventLoop, anyio.CancelScope]] = []
        for name in _MODULES:
            monkeypatch.setattr(f"bark_accel.server.{name}.fail_after", self._fail_after)

    @property
    def running(self) -> int:
        """Number of those that have begun and not ended."""
        return len(self._open)

    @contextmanager
    def passed(self) -> Iterator[None]:
        """Those are over that have begun when the block begins, or begin in it."""
        self._are_over = True
        for loop, scope in list(self._open):
            loop.call_soon_threadsafe(setattr, scope, "deadline", -math.inf)
        try:
            yield
        finally:
            self._are_over = False

    @contextmanager
    def _fail_after(self, seconds: float) -> Iterator[anyio.CancelScope]:
        self.given_s.add(seconds)
        with anyio.fail_after(None) as scope:
            entry = asyncio.get_running_loop(), scope
            self._open.append(entry)
            if self._are_over:
                scope.deadline = -math.inf
            try:
                yield scope
            finally:
                self._open.remove(entry)
