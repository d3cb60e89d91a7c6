"""Replicas of a server, as tests look at them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

from .waiting import until


def pids(server) -> list[int]:
    return [replica.link.pid for replica in server.engine.replicas if replica.link]


def runs(pid: int) -> bool:
    """Tell whether there is such a process, other than one that has ended and is not yet waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def parent(pid: int) -> int | None:
    """The process that has started it; None where it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


@contextmanager
def client_of(pool):
    """A client, once all replicas are ready; at its end nothing is left to do."""
    until(lambda: all(replica.ready for replica in pool.engine.replicas))
    with pool.client() as client:
        yield client
    until(lambda: pool.idle)


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


@contextmanager
def stopped(processes: Iterable[int]):
    """Let processes do nothing until the block is left."""
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in processes:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def metric(figures: str, name: str) -> list[float]:
    return [float(line.split()[-1]) for line in figures.splitlines() if line.startswith(name + "{")]
