"""A server process, and clients that play what they hear or leave."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

TEXT = "Hello, my dog is cute."
MARGIN_S = 0.1
BYTES_A_SECOND = 2 * 24_000
PCM = {"response_format": "pcm"}


@dataclass
class Answer:
    """The outcome of one request; a status of 0: its client left first."""

    status: int = 0
    first_s: float | None = None
    dry: int = 0
    sound_s: float = 0.0
    """Seconds of sound, of pcm."""
    retry_after_s: int | None = None
    broken: bool = False
    hash: Any = field(default_factory=hashlib.sha256)


@contextmanager
def server(*arguments: str) -> Iterator[str]:
    """Start a server and give its address once it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "bark_accel", "serve", "--port", str(port), *arguments])
    url = f"http://127.0.0.1:{port}"
    try:
        while not ready(url):
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with status {process.returncode}")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def behind(replicas: int | None) -> list[str]:
    """Arguments for a server with so many processes behind it, or none."""
    return [] if replicas is None else ["--replicas", str(replicas)]


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.HTTPError:
        return False


def connected(url: str) -> httpx.AsyncClient:
    """A client with as many connections as there are requests."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    return httpx.AsyncClient(base_url=url, timeout=180, limits=limits)


async def ask(
    client: httpx.AsyncClient, seed: int, text: str = TEXT, leave_s: float | None = None, **options: Any
) -> Answer:
    """Ask for speech and play it, or leave after a time."""
    answer = Answer()
    body = {"model": "tts-1", "voice": "alloy", "input": text, "seed": seed, **PCM, **options}
    try:
        await asyncio.wait_for(_play(client, body, answer), leave_s)
    except asyncio.TimeoutError:
        answer.status = 0
    except httpx.HTTPError:
        answer.broken = True
    return answer


async def _play(client: httpx.AsyncClient, body: dict[str, Any], answer: Answer) -> None:
    start = time.perf_counter()
    async with client.stream("POST", "/v1/audio/speech", json=body) as response:
        answer.status = response.status_code
        if "retry-after" in response.headers:
            answer.retry_after_s = int(response.headers["retry-after"])
        if response.status_code != 200:
            return
        due = 0.0
        async for piece in response.aiter_raw():
            now = time.perf_counter()
            if answer.first_s is None:
                answer.first_s, due = now - start, now + MARGIN_S
            elif now > due:
                answer.dry, due = answer.dry + 1, now
            answer.hash.update(piece)
            due += len(piece) / BYTES_A_SECOND
            answer.sound_s += len(piece) / BYTES_A_SECOND


def first_bytes(answers: list[Answer]) -> dict[str, float]:
    """Median and 95th percentile of the times to the first byte."""
    times = [answer.first_s for answer in answers if answer.first_s is not None and answer.status == 200]
    return {"first_byte_p50_s": float(np.median(times)), "first_byte_p95_s": float(np.percentile(times, 95))}


async def resident_bytes(client: httpx.AsyncClient) -> int:
    """Memory of the server, as its own figures tell it."""
    lines = (await client.get("/metrics")).text.splitlines()
    return int(float(next(line for line in lines if line.startswith("process_resident_memory_bytes ")).split()[1]))
