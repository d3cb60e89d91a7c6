"""A server: first bytes when idle, streams at once, and more requests than it can carry.

python -m benchmarks server --json benchmarks/results/zen5_server.json
python -m benchmarks server --replicas 2
python -m benchmarks server --shapes bark-small --json benchmarks/results/zen5_server_shapes.json

The server is a process of its own, its clients are coroutines of this one on the same cores. A stream is played from
its first byte on, with a margin of 0.1 s; it runs dry where sound comes later than it is due. In the rush requests of
all kinds arrive at random times whether earlier ones are answered or not, and one in ten clients leaves at a random
time. Exit status 1 where the rush has shown what may not be: a 5xx, an answer that breaks off, a 429 without
Retry-After, or other bytes than the same request had alone.

With --shapes, a model of random weights is served instead, and its engine runs the same requests in turns with it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from bark_accel.bench.measure import commit, machine_facts, versions
from bark_accel.bench.models import SHAPES
from bark_accel.transformer.precision import WEIGHTS

from .clients import Answer, ask, behind, connected, first_bytes, resident_bytes, server

STREAM_TEXT = "Hello, my dog is cute. Good morning, my cat is big. One two three four five. " * 2
STREAMS = (1, 2, 4, 6)
LEAVE = 0.1
# What comes in a rush: formats, a speed, events, and what is refused.
KINDS: tuple[dict[str, Any], ...] = (
    *({"response_format": name} for name in ("pcm", "mp3", "opus", "aac", "flac", "wav")),
    {"response_format": "pcm", "speed": 1.5},
    {"response_format": "pcm", "stream_format": "sse"},
    {"response_format": "pcm", "voice": "nobody"},
)
SEEDS = 4


async def idle(client: httpx.AsyncClient, requests: int) -> dict[str, Any]:
    """First bytes of requests one after the other."""
    await ask(client, 0)
    return {"requests": requests, **first_bytes([await ask(client, seed) for seed in range(requests)])}


async def streams(client: httpx.AsyncClient, count: int, repeats: int) -> dict[str, Any]:
    """So many long streams at once."""
    answers = []
    for repeat in range(repeats):
        answers += await asyncio.gather(*(ask(client, repeat * count + i, STREAM_TEXT) for i in range(count)))
    dry = sum(answer.dry for answer in answers)
    return {"streams": count, "heard_s": sum(a.sound_s for a in answers), "ran_dry": dry, **first_bytes(answers)}


async def rush(client: httpx.AsyncClient, rate: float, seconds: float) -> dict[str, Any]:
    """Arrivals at random times, `rate` a second."""
    begun_bytes = await resident_bytes(client)
    alone = {(k, s): await ask(client, s, **kind) for k, kind in enumerate(KINDS) for s in range(SEEDS)}
    chance, tasks, asked = random.Random(0), [], []
    start = due = time.perf_counter()
    while (due := due + chance.expovariate(rate)) < start + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        leave_s = chance.uniform(0.0, 2.0) if chance.random() < LEAVE else None
        kind, seed = chance.randrange(len(KINDS)), chance.randrange(SEEDS)
        asked.append((kind, seed))
        tasks.append(asyncio.create_task(ask(client, seed, leave_s=leave_s, **KINDS[kind])))
    answers = await asyncio.gather(*tasks)
    took = time.perf_counter() - start
    return {
        "rate": rate,
        "seconds": seconds,
        "requests": len(answers),
        "statuses": dict(Counter("left" if a.status == 0 and not a.broken else str(a.status) for a in answers)),
        "retry_after_s": sorted({a.retry_after_s for a in answers if a.retry_after_s is not None}),
        "answered_a_second": sum(answer.status == 200 for answer in answers) / took,
        **first_bytes(answers),
        "resident_bytes_before": begun_bytes,
        "resident_bytes": await resident_bytes(client),
        **faults(answers, [alone[key] for key in asked]),
    }


def faults(answers: list[Answer], alone: list[Answer]) -> dict[str, int]:
    """Count what may not be."""
    whole = [(a, b) for a, b in zip(answers, alone, strict=True) if a.status == 200 and not a.broken]
    return {
        "failed": sum(answer.status >= 500 for answer in answers),
        "broken": sum(answer.broken for answer in answers),
        "refused_without_retry_after": sum(a.status == 429 and not a.retry_after_s for a in answers),
        "other_bytes": sum(a.hash.digest() != b.hash.digest() for a, b in whole),
    }


async def measure(url: str, options: argparse.Namespace) -> dict[str, Any]:
    async with connected(url) as client:
        record = {"idle": await idle(client, options.idle)}
        record |= {"streams": [await streams(client, count, options.repeats) for count in STREAMS]}
        # Caches and buffers grow in the first; what grows in the second would grow on.
        record |= {"rushes": [await rush(client, options.rate, options.seconds) for _ in range(options.rushes)]}
        return record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idle", type=int, default=40, help="requests one after the other")
    parser.add_argument("--repeats", type=int, default=2, help="of each number of streams")
    parser.add_argument("--rate", type=float, default=40.0, help="requests a second in the rush")
    parser.add_argument("--seconds", type=float, default=120.0, help="length of each rush")
    parser.add_argument("--rushes", type=int, default=2, help="one after the other")
    parser.add_argument("--replicas", type=int, help="processes behind the server; not given: its own")
    parser.add_argument("--shapes", choices=SHAPES, help="streams of such a model alone")
    parser.add_argument("--weights", choices=WEIGHTS, default="int8", help="of that model")
    parser.add_argument("--spoken-s", type=float, default=4.0, help="seconds of each of its streams")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.shapes is not None:
        from .shapes import measure as measure_shapes

        figures = measure_shapes(options)
    else:
        with server(*behind(options.replicas)) as url:
            figures = asyncio.run(measure(url, options))
    record = {
        "replicas": options.replicas,
        "machine": machine_facts(),
        "versions": versions(),
        "commit": commit(),
        **figures,
    }
    text = json.dumps([record], indent=1)
    if options.json is not None:
        options.json.write_text(text + "\n")
    print(text)
    wrong = {name: rush[name] for rush in figures.get("rushes", []) for name in faults([], []) if rush[name]}
    if wrong:
        print(f"expected none of these in a rush, got {wrong}", file=sys.stderr)
    return 1 if wrong else 0
