"""An engine under load: throughput and latency against offered load, beside `generate` alone and stock's batches.

python -m benchmarks load --json benchmarks/results/zen5_load.json --plots docs      # some 20 minutes on two cores
python -m benchmarks load --rows 1 8 --requests 4 --seconds 1 2 --weights int8 --loads 1     # some five minutes
python -m benchmarks load --seconds 2 10 --rows 1 2 4 8 16 --loads 0.5 0.8 1 1.2 --stock 4   # more than an hour

Random weights of bark-small's shapes; a request's length is drawn from --seconds by a seed. Closed: all requests are
there at once, as whole waveforms; each is compared with `generate`'s, which says them before and after the engines.
Open: streams arrive at random times (Poisson), so many times as fast as they would be generated one after the other,
and are played from their first sound on. Stock, which is some ten times slower, has to say --stock of the requests,
one after the other and as one batch: rates are seconds of speech a second, whatever the number.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bark_accel import BarkEngine, SpeechRequest, accelerate_bark
from bark_accel.bench.measure import commit, machine_facts, versions
from bark_accel.bench.models import fake_inputs, quiet_transformers, random_bark, semantic_tokens, shared_copy
from bark_accel.cli.demo import TEXT
from bark_accel.hf.configs import sample_rate
from benchmarks.generation.timeline import Chunk, Timeline

WAYS = {
    "float32": {},
    "int8": {"weights": "int8"},
    "int8-fit": {"weights": "int8", "fit_windows": True},
}
DEFAULT_WAYS = ("float32", "int8-fit")
ROWS = (1, 4, 8, 16)
LOADS = (0.8, 1.2)
_POLICY = "low_latency"


@dataclass(frozen=True)
class Asked:
    """One request: arguments of `generate`, the seed, seconds of speech."""

    arguments: dict[str, Any]
    seed: int
    seconds: float


def requests(model: Any, count: int, seconds: list[float], seed: int) -> list[Asked]:
    """So many requests, of lengths drawn between the least and the most seconds."""
    chance, asked = random.Random(seed), []
    for index in range(count):
        length_s = chance.uniform(min(seconds), max(seconds))
        tokens = semantic_tokens(model, length_s)
        limits = {"semantic_max_new_tokens": tokens, "semantic_min_new_tokens": tokens}
        asked.append(Asked({**fake_inputs(model, TEXT), **limits}, index, length_s))
    return asked


def one_after_the_other(model: Any, asked: list[Asked]) -> tuple[list[Tensor], float]:
    """Waveforms [S] of `generate`, and the seconds of all."""
    start, made = time.perf_counter(), []
    for one in asked:
        torch.manual_seed(one.seed)
        made.append(model.generate(**one.arguments)[0].float())
    return made, time.perf_counter() - start


def stock_batch(model: Any, asked: list[Asked]) -> float:
    """Seconds of one `generate` of all: every row is as long as the longest, as stock has it."""
    longest = max(asked, key=lambda one: one.seconds)
    inputs = {name: value.repeat(len(asked), 1) for name, value in fake_inputs(model, TEXT).items()}
    limits = {name: value for name, value in longest.arguments.items() if name.startswith("semantic_")}
    start = time.perf_counter()
    model.generate(**inputs, **limits)
    return time.perf_counter() - start


def closed(model: Any, asked: list[Asked], rows: int) -> tuple[list[Tensor], float]:
    """All at once through an engine."""
    start = time.perf_counter()
    with BarkEngine(model, max_rows=rows, max_queued=len(asked)) as engine:
        going = [engine.submit(**one.arguments, seed=one.seed) for one in asked]
        made = [request.result() for request in going]
    return made, time.perf_counter() - start


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Seconds after the start at which requests come: a Poisson process of `rate` a second, from the first one on."""
    chance = random.Random(seed)
    gaps = [0.0, *(chance.expovariate(rate) for _ in range(count - 1))]
    return [float(at) for at in np.cumsum(gaps)]


def opened(model: Any, asked: list[Asked], rows: int, rate: float) -> tuple[list[Timeline], float]:
    """Streams that come whether earlier ones are answered or not; the timeline of each, and the seconds of all."""
    lines: list[Timeline | None] = [None] * len(asked)
    with BarkEngine(model, max_rows=rows, max_queued=len(asked)) as engine:
        start, listeners = time.perf_counter(), []
        for index, (one, due) in enumerate(zip(asked, arrivals(len(asked), rate, seed=1), strict=True)):
            time.sleep(max(0.0, start + due - time.perf_counter()))
            request = engine.submit(**one.arguments, seed=one.seed, policy=_POLICY)
            listener = threading.Thread(target=_listen, args=(request, start + due, lines, index))
            listener.start()
            listeners.append(listener)
        for listener in listeners:
            listener.join()
        took_s = time.perf_counter() - start
    return [line for line in lines if line is not None], took_s


def _listen(request: SpeechRequest, start: float, lines: list[Timeline | None], index: int) -> None:
    chunks = []
    for chunk in request:
        chunks.append(Chunk(time.perf_counter() - start, len(chunk) / request.sampling_rate))
    lines[index] = Timeline(tuple(chunks), time.perf_counter() - start)


def latencies(lines: list[Timeline]) -> dict[str, float]:
    """First sound, time from chunk to chunk, and silences, of all streams."""
    first = [line.chunks[0].ready_s for line in lines]
    gaps = [b.ready_s - a.ready_s for line in lines for a, b in zip(line.chunks, line.chunks[1:], strict=False)]
    silences = [line.underruns_s for line in lines]
    return {
        "first_sound_p50_s": float(np.percentile(first, 50)),
        "first_sound_p95_s": float(np.percentile(first, 95)),
        "gap_p50_s": float(np.percentile(gaps, 50)) if gaps else 0.0,
        "gap_p95_s": float(np.percentile(gaps, 95)) if gaps else 0.0,
        "underruns": sum(map(len, silences)),
        "silence_s_a_request": sum(map(sum, silences)) / len(lines),
    }


def measure(stock: Any, way: str, options: argparse.Namespace) -> dict[str, Any]:
    """All of one way: `generate`, the engine with each number of rows, `generate` again, arrivals."""
    model, rate = accelerate_bark(shared_copy(stock), **WAYS[way]), sample_rate(stock)
    asked = requests(model, options.requests, options.seconds, options.seed)
    one_after_the_other(model, requests(model, 1, [0.2], 0))  # makes the copies of the weights
    record: dict[str, Any] = {"way": way, "closed": [], "open": []}
    expected, first_s = one_after_the_other(model, asked)
    runs = [(rows, *closed(model, asked, rows)) for rows in options.rows]
    alone = (first_s + one_after_the_other(model, asked)[1]) / 2
    for rows, made, took_s in runs:
        spoken_s = sum(map(len, made)) / rate
        equal = sum(torch.equal(*pair) for pair in zip(made, expected, strict=True))
        record["closed"].append(
            {
                "rows": rows,
                "alone_s": alone,
                "engine_s": took_s,
                "spoken_s": spoken_s,
                "alone_speech_a_second": spoken_s / alone,
                "speech_a_second": spoken_s / took_s,
                "times_alone": alone / took_s,
                "equal": equal,
            }
        )
        _say(way, record["closed"][-1])
    for rows in options.open_rows:
        for load in options.loads:
            lines, took_s = opened(model, asked, rows, load * len(asked) / alone)
            spoken_s = sum(chunk.audio_s for line in lines for chunk in line.chunks)
            figures = {"rows": rows, "load": load, "speech_a_second": spoken_s / took_s, **latencies(lines)}
            record["open"].append(figures)
            _say(way, figures)
    return record


def measure_stock(stock: Any, options: argparse.Namespace) -> dict[str, float]:
    """Speech a second of stock: `--stock` of the requests one after the other, and as one batch."""
    asked = requests(stock, options.requests, options.seconds, options.seed)[: options.stock]
    one_after_the_other(stock, requests(stock, 1, [0.2], 0))  # what the first call has to prepare
    made, alone_s = one_after_the_other(stock, asked)
    spoken_s = sum(map(len, made)) / sample_rate(stock)
    batch_s = stock_batch(stock, asked)
    figures = {"requests": len(asked), "alone": spoken_s / alone_s, "batch": spoken_s / batch_s}
    _say("stock", figures)
    return figures


def _say(way: str, figures: dict[str, float]) -> None:
    print(f"{way}:", ", ".join(f"{name} {value:.4g}" for name, value in figures.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", choices=WAYS, default=DEFAULT_WAYS, metavar="WAY", help=" ".join(WAYS))
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="max_rows of the engines, all at once")
    parser.add_argument("--open-rows", type=int, nargs="*", default=(8,), help="max_rows where requests arrive")
    parser.add_argument("--loads", type=float, nargs="*", default=LOADS, help="of one after the other's throughput")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 4.0], help="lengths lie between these")
    parser.add_argument("--seed", type=int, default=0, help="of the lengths")
    parser.add_argument("--stock", type=int, default=2, help="of the requests that stock has to say; 0: none")
    parser.add_argument("--shape", default="bark-small")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plots", type=Path, help="folder for load.png")
    options = parser.parse_args()
    quiet_transformers()
    stock = random_bark(options.shape)
    record: dict[str, Any] = {
        "shape": options.shape,
        "requests": options.requests,
        "seconds": [min(options.seconds), max(options.seconds)],
        "policy": _POLICY,
        "stock": measure_stock(stock, options) if options.stock else None,
        "ways": [measure(stock, way, options) for way in options.weights],
        "machine": machine_facts(),
        "versions": versions(),
        "commit": commit(),
    }
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    if options.plots:
        from benchmarks.generation.plots import save_load

        save_load(options.plots / "load.png", record)


if __name__ == "__main__":
    main()
