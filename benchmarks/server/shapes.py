"""Streams of a model of real shapes with random weights, and what its engine makes of the same requests alone."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bark_accel import BarkEngine, accelerate_bark
from bark_accel.bench.models import LoadedBark, load_bark, random_bark, semantic_tokens

from .clients import TEXT, ask, behind, connected, first_bytes, server

COUNTS = (1, 2, 4)


def save(folder: Path, shape: str, spoken_s: float) -> None:
    """Write a model that says so many seconds, whatever the text."""
    model = random_bark(shape)
    model.generation_config.semantic_config["max_new_tokens"] = semantic_tokens(model, spoken_s)
    model.save_pretrained(folder)


def engine_alone(loaded: LoadedBark, engine: BarkEngine, count: int) -> dict[str, float]:
    """So many streams at once, with no server around the engine."""
    inputs = loaded.any_processor([TEXT], max_length=256)
    start = time.perf_counter()
    requests = [engine.submit(**inputs, seed=seed, policy="low_latency") for seed in range(count)]
    sound_s = sum(request.result().numel() / request.sampling_rate for request in requests)
    return {"sound_s": sound_s, "seconds": time.perf_counter() - start}


async def streams(url: str, count: int) -> dict[str, Any]:
    """The same requests over HTTP."""
    async with connected(url) as client:
        start = time.perf_counter()
        answers = await asyncio.gather(*(ask(client, seed) for seed in range(count)))
        seconds = time.perf_counter() - start
    statuses = sorted({answer.status for answer in answers})
    assert statuses == [200], f"expected answers, got {statuses}"
    return {"answers": answers, "sound_s": sum(answer.sound_s for answer in answers), "seconds": seconds}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both in turns, `repeats` times for each number of streams; rates are seconds of sound a second."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), options.shapes, options.spoken_s)
        loaded = load_bark(folder)
        accelerate_bark(loaded.model, weights=options.weights)
        with (
            server("--model", f"{options.shapes}={folder}:{options.weights}", *behind(options.replicas)) as url,
            BarkEngine(loaded.model) as engine,
        ):
            # Both have their caches and threads after this.
            engine_alone(loaded, engine, 1), asyncio.run(streams(url, 1))
            for count in COUNTS:
                pairs = [
                    (engine_alone(loaded, engine, count), asyncio.run(streams(url, count)))
                    for _ in range(options.repeats)
                ]
                rows.append(_row(count, pairs))
    shown = {"shape": options.shapes, "weights": options.weights, "spoken_s": options.spoken_s}
    return {**shown, "repeats": options.repeats, "threads": torch.get_num_threads(), "streams": rows}


def _row(count: int, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    answers = [answer for _, served in pairs for answer in served["answers"]]
    rates = [[part["sound_s"] / part["seconds"] for part in side] for side in zip(*pairs, strict=True)]
    alone, served = (float(torch.tensor(side).median()) for side in rates)
    return {
        "streams": count,
        "engine_rates": rates[0],
        "server_rates": rates[1],
        "engine_rate": alone,
        "server_rate": served,
        "server_of_engine": served / alone,
        "ran_dry": sum(answer.dry for answer in answers),
        **first_bytes(answers),
    }
