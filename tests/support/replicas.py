"""Replicas of a server, as tests look at them."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import httpx

from .servers import until

BODY = {"model": "tts-1", "voice": "alloy", "input": "Hello, my dog is cute.", "response_format": "pcm", "seed": 5}
LONG = {**BODY, "input": "Hello, my dog is cute. Good morning, my cat is big. " * 60}
SPEECH = "/v1/audio/speech"


def users(server) -> int:
    return sum(speaker.users for speaker in server.state.models.loaded())


def pids(server) -> list[int]:
    return [replica.link.pid for replica in server.engine.replicas if replica.link]


def runs(pid: int) -> bool:
    """Tell whether there is such a process, other than one that has ended and is not yet waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@contextmanager
def client_of(pool):
    """A client, once all replicas are ready; at its end nothing is left to do."""
    until(lambda: all(replica.ready for replica in pool.engine.replicas))
    with httpx.Client(base_url=pool.url, timeout=60) as client:
        yield client
    until(lambda: not users(pool) and not pool.engine.requests)


@contextmanager
def only(server, index: int):
    """Give all requests to one replica."""
    others = [replica for replica in server.engine.replicas if replica.index != index]
    links = [replica.link for replica in others]
    for replica in others:
        replica.ready = False
    try:
        yield
    finally:
        for replica, link in zip(others, links, strict=True):
            # Another process says itself when it is ready.
            replica.ready = replica.ready or (link is not None and replica.link is link)


def metric(figures: str, name: str) -> list[float]:
    return [float(line.split()[-1]) for line in figures.splitlines() if line.startswith(name + "{")]
