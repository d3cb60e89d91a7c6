"""A server of the small Bark: first bytes when idle, streams at once, and more requests than it can carry.

python -m benchmarks server --json benchmarks/results/zen5_server.json

The server is a process of its own, its clients are coroutines of this one on the same cores. A stream is played from
its first byte on, with a margin of 0.1 s; it runs dry where sound comes later than it is due. In the rush requests
arrive at random times whether earlier ones are answered or not, and one in ten clients leaves at a random time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from bark_accel.bench.measure import commit, machine_facts, versions

TEXT = "Hello, my dog is cute."
STREAM_TEXT = "Hello, my dog is cute. Good morning, my cat is big. One two three four five. " * 2
STREAMS = (1, 2, 4, 6)
MARGIN_S = 0.1
BYTES_A_SECOND = 2 * 24_000
LEAVE = 0.1


@dataclass
class Answer:
    """The outcome of one request; a status of 0: its client left first."""

    status: int = 0
    first_s: float | None = None
    dry: int = 0
    sound_s: float = 0.0
    retry_after: bool = False
    broken: bool = False


@contextmanager
def server() -> Iterator[str]:
    """Start a server and give its address once it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "bark_accel", "serve", "--port", str(port)])
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


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.HTTPError:
        return False


async def ask(client: httpx.AsyncClient, text: str, seed: int, leave_s: float | None = None) -> Answer:
    """Ask for speech and play it, or leave after a time."""
    answer = Answer()
    try:
        await asyncio.wait_for(_play(client, text, seed, answer), leave_s)
    except asyncio.TimeoutError:
        answer.status = 0
    except httpx.HTTPError:
        answer.broken = True
    return answer


async def _play(client: httpx.AsyncClient, text: str, seed: int, answer: Answer) -> None:
    body = {"model": "tts-1", "voice": "alloy", "input": text, "response_format": "pcm", "seed": seed}
    start = time.perf_counter()
    async with client.stream("POST", "/v1/audio/speech", json=body) as response:
        answer.status, answer.retry_after = response.status_code, "retry-after" in response.headers
        if response.status_code != 200:
            return
        due = 0.0
        async for piece in response.aiter_raw():
            now = time.perf_counter()
            if answer.first_s is None:
                answer.first_s, due = now - start, now + MARGIN_S
            elif now > due:
                answer.dry, due = answer.dry + 1, now
            due += len(piece) / BYTES_A_SECOND
            answer.sound_s += len(piece) / BYTES_A_SECOND


async def idle(client: httpx.AsyncClient, requests: int) -> dict[str, Any]:
    """First bytes of requests one after the other."""
    await ask(client, TEXT, 0)
    return {"requests": requests, **first_bytes([await ask(client, TEXT, seed) for seed in range(requests)])}


async def streams(client: httpx.AsyncClient, count: int, repeats: int) -> dict[str, Any]:
    """So many long streams at once."""
    answers = []
    for repeat in range(repeats):
        answers += await asyncio.gather(*(ask(client, STREAM_TEXT, repeat * count + i) for i in range(count)))
    dry = sum(answer.dry for answer in answers)
    return {"streams": count, "heard_s": sum(a.sound_s for a in answers), "ran_dry": dry, **first_bytes(answers)}


async def rush(client: httpx.AsyncClient, rate: float, seconds: float) -> dict[str, Any]:
    """Arrivals at random times, `rate` a second."""
    chance, tasks = random.Random(0), []
    start = due = time.perf_counter()
    while (due := due + chance.expovariate(rate)) < start + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        leave_s = chance.uniform(0.0, 2.0) if chance.random() < LEAVE else None
        tasks.append(asyncio.create_task(ask(client, TEXT, len(tasks), leave_s)))
    answers = await asyncio.gather(*tasks)
    took = time.perf_counter() - start
    refused = [answer for answer in answers if answer.status == 429]
    return {
        "rate": rate,
        "seconds": seconds,
        "requests": len(answers),
        "statuses": dict(Counter("left" if a.status == 0 and not a.broken else str(a.status) for a in answers)),
        "broken": sum(answer.broken for answer in answers),
        "refused_without_retry_after": sum(not answer.retry_after for answer in refused),
        "answered_a_second": sum(answer.status == 200 for answer in answers) / took,
        "sound_s_a_second": sum(answer.sound_s for answer in answers) / took,
        **first_bytes(answers),
        "resident_bytes": await resident_bytes(client),
    }


def first_bytes(answers: list[Answer]) -> dict[str, float]:
    """Median and 95th percentile of the times to the first byte."""
    times = [answer.first_s for answer in answers if answer.first_s is not None and answer.status == 200]
    return {"first_byte_p50_s": float(np.median(times)), "first_byte_p95_s": float(np.percentile(times, 95))}


async def measure(url: str, options: argparse.Namespace) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        record = {"idle": await idle(client, options.idle)}
        record |= {"streams": [await streams(client, count, options.repeats) for count in STREAMS]}
        # Caches and buffers grow in the first; what grows in the second would grow on.
        record |= {"rushes": [await rush(client, options.rate, options.seconds) for _ in range(2)]}
        return record


async def resident_bytes(client: httpx.AsyncClient) -> int:
    """Memory of the server, as its own figures tell it."""
    lines = (await client.get("/metrics")).text.splitlines()
    return int(float(next(line for line in lines if line.startswith("process_resident_memory_bytes ")).split()[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idle", type=int, default=40, help="requests one after the other")
    parser.add_argument("--repeats", type=int, default=2, help="of each number of streams")
    parser.add_argument("--rate", type=float, default=40.0, help="requests a second in the rush")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each of the two rushes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with server() as url:
        figures = asyncio.run(measure(url, options))
    record = {"machine": machine_facts(), "versions": versions(), "commit": commit(), **figures}
    text = json.dumps([record], indent=1)
    if options.json is not None:
        options.json.write_text(text + "\n")
    print(text)
