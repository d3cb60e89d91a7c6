"""Connections that last, and what they do when the server ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from anyio import CancelScope

from .errors import shutting_down
from .state import State

LINGER_S = 2.0
"""Seconds that a client has to take the last that is sent."""
T = TypeVar("T")


class Session:
    """A connection on which a client sends one thing after the other.

    When the server ends, it finishes what it was given and takes no more.

    Parameters
    ----------
    state : State
        Knows it while it runs.
    """

    def __init__(self, state: State):
        self._state = state
        self._draining = False
        self._receiving = CancelScope()

    async def run(self) -> None:
        """Serve the client until either side ends it."""
        self._state.sessions.add(self)
        try:
            await self._serve()
        finally:
            self._state.sessions.discard(self)

    def drain(self) -> None:
        """Take no more."""
        self._draining = True
        self._receiving.cancel()

    async def _serve(self) -> None:
        raise NotImplementedError

    async def _received(self, receive: Callable[[], Awaitable[T]]) -> T:
        """Return what comes next. Raises `ApiError` (503) when the server ends."""
        with CancelScope() as self._receiving:
            if not self._draining:
                return await receive()
        raise shutting_down()
