"""A real server on loopback, in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from fastapi import FastAPI

from bark_accel.server.run import SpeechServer, make_server
from bark_accel.server.settings import Settings
from bark_accel.server.state import State


@dataclass(frozen=True)
class Running:
    """A server that answers, and its insides."""

    url: str
    app: FastAPI
    server: SpeechServer

    @property
    def state(self) -> State:
        return self.app.state.server

    @property
    def wyoming_port(self) -> int:
        return self.server.wyoming.port

    def stop(self) -> None:
        """Let it end, as a signal does."""
        self.server.should_exit = True

    @property
    def engine(self):
        """The engine of the first model."""
        (speaker, *_) = self.state.models.loaded()
        return speaker._engine


@contextmanager
def running(settings: Settings, *, ready: bool = True, wyoming: bool = False) -> Iterator[Running]:
    """Serve until the block is left."""
    server = make_server(settings, "127.0.0.1", 0, 0 if wyoming else None)
    server.config.log_level = "error"
    server.config.configure_logging()
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    try:
        until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        running = Running(f"http://127.0.0.1:{port}", server.config.app, server)
        if ready:
            until(lambda: httpx.get(f"{running.url}/ready").status_code == 200, 120, every_s=0.05)
        yield running
    finally:
        server.should_exit = True
        thread.join()


def until(true, seconds: float = 60.0, *, every_s: float = 0.005) -> None:
    """Wait until `true()` is, or fail."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"expected it within {seconds} s"
        time.sleep(every_s)
