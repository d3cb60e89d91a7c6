"""HTTP as uvicorn speaks it, with bounds for a request that does not become whole."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class BoundedProtocol(H11Protocol):
    """Ends a connection whose request has not come after some seconds; h11 bounds the bytes of its head (64 KiB)."""

    seconds: float

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take what comes; the time begins anew with the next request."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, error: Exception | None) -> None:
        """Stop the clock."""
        super().connection_lost(error)
        self._stop()

    @property
    def _waits(self) -> bool:
        """Tell whether a request is to come, or the rest of its body."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def _watch(self) -> None:
        if not self._waits:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.seconds, self._end)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        # A WebSocket has gone on to a protocol of its own.
        if self._waits and self in self.connections:
            self.transport.close()


def bounded_protocol(seconds: float) -> type[BoundedProtocol]:
    """The protocol for `uvicorn.Config`: requests have so many seconds to come."""
    return type("BoundedProtocol", (BoundedProtocol,), {"seconds": seconds})
