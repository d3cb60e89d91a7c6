"""A real server on loopback, in a thread of its own."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest
from fastapi import FastAPI

from bark_accel.server.run import SpeechServer, make_server
from bark_accel.server.settings import Settings
from bark_accel.server.state import State

from .waiting import LIMIT_S, until

SPEECH = "/v1/audio/speech"
BODY = {"model": "tts-1", "voice": "alloy", "input": "Hello, my dog is cute.", "response_format": "pcm", "seed": 5}
# 120 sentences, some 200 s.
LONG = {**BODY, "input": "Hello, my dog is cute. Good morning, my cat is big. " * 60}
_PCM_BYTES_A_SECOND = 2 * 24_000
# Of a server's connections: who reads nothing holds back what follows after seconds, not after minutes of sound.
_BUFFER_BYTES = 1 << 16


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
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

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

    @property
    def users(self) -> int:
        """Requests that have a place."""
        return sum(speaker.users for speaker in self.state.models.loaded())

    @property
    def idle(self) -> bool:
        """Nobody has a place, and nothing is generated."""
        return not any(speaker.users or speaker._engine.requests for speaker in self.state.models.loaded())

    @property
    def sound_s(self) -> float:
        """Seconds of sound that all requests were given so far."""
        return self.state.metrics.sound._value.get()

    @property
    def clients_left(self) -> int:
        """Clients that have left before the end, so far."""
        return self.state.metrics.left._value.get()

    def client(self, **options) -> httpx.Client:
        """A client that waits as long as it takes."""
        return httpx.Client(base_url=self.url, timeout=LIMIT_S, **options)

    def get(self, path: str, **options) -> httpx.Response:
        with self.client() as client:
            return client.get(path, **options)

    def post(self, path: str, **options) -> httpx.Response:
        with self.client() as client:
            return client.post(path, **options)


@contextmanager
def running(settings: Settings, *, ready: bool = True, wyoming: bool = False) -> Iterator[Running]:
    """Serve until the block is left."""
    server = make_server(settings, "127.0.0.1", 0, 0 if wyoming else None)
    server.config.log_level = "error"
    server.config.configure_logging()
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    try:
        until(lambda: server.started and (not wyoming or server.wyoming._server))
        for listening in [*server.servers, *([server.wyoming._server] if wyoming else [])]:
            listening.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        port = server.servers[0].sockets[0].getsockname()[1]
        running = Running(f"http://127.0.0.1:{port}", server.config.app, server)
        if ready:
            until(lambda: running.state.ready or running.state.failure)
            assert running.get("/ready").status_code == 200, running.state.failure
        yield running
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def listener(server: Running, body: dict) -> Iterator[socket.socket]:
    """A client that has asked for speech and reads nothing by itself; it leaves with the block."""
    content = json.dumps(body).encode()
    head = f"POST {SPEECH} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\ncontent-type: application/json\r\n"
    with narrow_connection(server.address) as connection:
        connection.sendall(head.encode() + b"\r\n" + content)
        yield connection


@contextmanager
def narrow_connection(address: tuple[str, int]) -> Iterator[socket.socket]:
    """A connection that has room for little that is not read."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(LIMIT_S)
        connection.connect(address)
        yield connection


@contextmanager
def leaving(server: Running, most_s: float) -> Iterator[None]:
    """A client of `LONG` that leaves with the block: all is free then, long before its end was generated."""
    sound_s, left = server.sound_s, server.clients_left
    yield
    until(lambda: server.idle and server.clients_left == left + 1)
    assert server.sound_s - sound_s < most_s


def is_held_back(server: Running) -> bool:
    """Tell whether nothing is generated for those who read nothing, while somebody else's request is answered."""
    before = server.sound_s
    own_s = len(server.post(SPEECH, json=BODY).content) / _PCM_BYTES_A_SECOND
    return server.sound_s - before == pytest.approx(own_s, abs=0.05)
