"""Runs the application with uvicorn."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from typing import TYPE_CHECKING

import uvicorn

from .app import create_app
from .protocol import bounded_protocol
from .settings import Settings
from .state import State

if TYPE_CHECKING:
    from .wyoming import WyomingServer

logger = logging.getLogger("uvicorn.error")

# Seconds that a request has to come, at least.
_LEAST_S = 1.0
# Between two looks whether the sessions are over.
_LOOK_S = 0.05


class SpeechServer(uvicorn.Server):
    """Uvicorn's server, with a Wyoming port beside it. Ending, it lets sessions say what they were given."""

    def __init__(self, config: uvicorn.Config, state: State, wyoming: WyomingServer | None):
        super().__init__(config)
        self._state, self.wyoming = state, wyoming

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. Ends the process where an address cannot be had."""
        await super().startup(sockets)
        if self.wyoming is not None and not self.should_exit:
            try:
                await self.wyoming.start()
            except OSError as error:
                logger.error("Wyoming: %s", error)
                await self.lifespan.shutdown()
                sys.exit(1)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen no more, and give what runs the seconds of `drain_s`."""
        until = time.monotonic() + self._state.settings.drain_s
        for server in self.servers:
            server.close()
        if self.wyoming is not None:
            self.wyoming.close()
        for session in list(self._state.sessions):
            session.drain()
        while self._state.sessions and time.monotonic() < until and not self.force_exit:
            await asyncio.sleep(_LOOK_S)
        if self.wyoming is not None:
            self.wyoming.abort()
        self.config.timeout_graceful_shutdown = max(0, round(until - time.monotonic()))
        await super().shutdown(sockets)


def make_server(settings: Settings, host: str, port: int, wyoming_port: int | None = None) -> SpeechServer:
    """A server of its own; SIGTERM and SIGINT let it finish what it has begun.

    Parameters
    ----------
    settings : Settings
    host : str
        Address to listen at.
    port : int
        0: a free one.
    wyoming_port : int, optional
        A port for Wyoming at the same address. None: there is none.
    """
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="info",
        server_header=False,
        http=bounded_protocol(max(settings.deadline_s, _LEAST_S)),
        ws_max_size=settings.max_body_bytes,
        # Pongs are read with the text, which waits where too much is still to be said.
        ws_ping_timeout=settings.deadline_s,
    )
    state: State = app.state.server
    if wyoming_port is None:
        return SpeechServer(config, state, None)
    from .wyoming import WyomingServer

    return SpeechServer(config, state, WyomingServer(state, host, wyoming_port))


def run(settings: Settings, host: str, port: int, wyoming_port: int | None = None) -> None:
    """Serve until told to end."""
    make_server(settings, host, port, wyoming_port).run()
