"""An engine under load: throughput and latency against offered load, beside `generate` alone and stock's batches.

python -m benchmarks load --json load.json --plot load.png                           # some 20 minutes on two cores
python -m benchmarks load --rows 1 8 --requests 4 --seconds 1 2 --weights int8 --loads 1     # some three minutes
python -m benchmarks load --seconds 2 10 --rows 1 2 4 8 16 --loads 0.5 0.8 1 1.2 --stock 4   # more than an hour
python -m benchmarks load --seconds 2 10 --rows 8 --open-rows --once --stock 2 --weights w8a8-fit   # some seven minutes

Random weights of bark-small's shapes; a request's length is drawn from --seconds by a seed. A way is the precision of
the weights, and behind it what is approximate: `fit` for fit_windows, `long` for long_coarse_windows, `kv8` for caches
of int8. Closed: all requests are there at once, as whole waveforms; each is compared with `generate`'s, which says them
before the engines and, without --once, after them. The engine's seconds are told apart: prompts, steps that rows share,
sound (fine stage and codec). The last lines set these beside `generate` one after the other, ours and stock's.
Open: streams arrive at random times (Poisson), so many times as fast as they would be generated one after the other,
and are played from their first sound on. Stock, which is some ten times slower, has to say --stock of the requests,
those of middle length, one after the other and as one batch: rates are seconds of speech a second, whatever the number.

The file of --json is whole after every point. The same command goes on where it was ended, by --minutes or otherwise;
other ways, rows and loads are added.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import threading
import time
from collections.abc import Callable
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
from benchmarks.generation.engine_parts import engine_parts
from benchmarks.generation.load_figures import comparisons
from benchmarks.generation.timeline import Chunk, Timeline

# Arguments of `accelerate_bark` by the parts of a way's name.
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float16": {"weights": "float16"},
    "int8": {"weights": "int8"},
    "w8a8": {"weights": "w8a8"},
}
APPROXIMATIONS: dict[str, dict[str, Any]] = {
    "fit": {"fit_windows": True},
    "long": {"long_coarse_windows": True},
    "kv8": {"kv_cache_dtype": "int8"},
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


def way_arguments(way: str) -> dict[str, Any]:
    """Arguments of `accelerate_bark`, from a name such as "int8-fit"; raises `ValueError` for others."""
    precision, *parts = way.split("-")
    if precision not in PRECISIONS or not set(parts) <= set(APPROXIMATIONS):
        raise ValueError(
            f"expected one of {', '.join(PRECISIONS)}, with any of -{', -'.join(APPROXIMATIONS)}, got {way!r}"
        )
    arguments = dict(PRECISIONS[precision])
    for part in parts:
        arguments |= APPROXIMATIONS[part]
    return arguments


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


class Points:
    """The points of a load that were measured, in a file that is whole after every point.

    Parameters
    ----------
    file : Path or None
        May have points of the same `facts`, which are kept.
    facts : dict
        What the points have in common, as JSON has it.
    minutes : float
        No point is begun later.
    """

    def __init__(self, file: Path | None, facts: dict[str, Any], minutes: float):
        self._file = file
        self._end = time.monotonic() + 60 * minutes
        self.record: dict[str, Any] = {**facts, "stock": [], "ways": []}
        self.left: list[str] = []
        """Points for which there was no time."""
        if file is not None and file.exists():
            kept = json.loads(file.read_text())
            others = {name: kept.get(name) for name, fact in facts.items() if kept.get(name) != fact}
            if others:
                wanted = {name: facts[name] for name in others}
                raise SystemExit(f"{file}: expected points of {wanted}, got those of {others}")
            self.record = kept

    def way(self, name: str) -> dict[str, Any]:
        """The points of one way, by kind."""
        ways = self.record["ways"]
        found = next((its for its in ways if its["way"] == name), None)
        if found is None:
            ways.append(found := {"way": name, "alone": [], "closed": [], "open": []})
        return found

    def add(self, way: str, points: list[dict[str, Any]], key: dict[str, Any], make: Callable[[], dict]) -> None:
        """Measure the point of `key`, unless it is there or it is too late, and write the file."""
        if any(key.items() <= point.items() for point in points):
            return
        if time.monotonic() > self._end:
            self.left.append(f"{way} {key}")
            return
        points.append({**key, **make()})
        figures = {name: value for name, value in points[-1].items() if name != "sha256"}
        print(f"{way}:", ", ".join(f"{name} {_short(value)}" for name, value in figures.items()), flush=True)
        if self._file is not None:
            whole = self._file.with_suffix(".part")
            whole.write_text(json.dumps(self.record, indent=1) + "\n")
            whole.replace(self._file)


def measure(stock: Any, way: str, options: argparse.Namespace, points: Points) -> None:
    """All of one way: `generate`, the engine with each number of rows, arrivals, `generate` again."""
    model = accelerate_bark(shared_copy(stock), **way_arguments(way))
    asked = requests(model, options.requests, options.seconds, options.seed)
    one_after_the_other(model, requests(model, 1, [0.2], 0))  # makes the copies of the weights
    its = points.way(way)

    def alone() -> dict[str, Any]:
        made, took_s = one_after_the_other(model, asked)
        return {**_rate(model, sum(map(len, made)), took_s), "sha256": [_digest(each) for each in made]}

    def together(rows: int) -> dict[str, Any]:
        with engine_parts() as parts:
            made, took_s = closed(model, asked, rows)
        pairs = zip(map(_digest, made), its["alone"][0]["sha256"], strict=True)
        return {**_rate(model, sum(map(len, made)), took_s), "equal": sum(a == b for a, b in pairs), **parts}

    def arriving(rows: int, load: float) -> dict[str, Any]:
        lines, took_s = opened(model, asked, rows, load * len(asked) / its["alone"][0]["took_s"])
        spoken_s = sum(chunk.audio_s for line in lines for chunk in line.chunks)
        return {"took_s": took_s, "speech_a_second": spoken_s / took_s, **latencies(lines)}

    points.add(way, its["alone"], {"when": "before"}, alone)
    if its["alone"]:
        for rows in options.rows:
            points.add(way, its["closed"], {"rows": rows}, lambda rows=rows: together(rows))
        for rows in options.open_rows:
            for load in options.loads:
                key = {"rows": rows, "load": load}
                points.add(way, its["open"], key, lambda rows=rows, load=load: arriving(rows, load))
        if not options.once:
            points.add(way, its["alone"], {"when": "after"}, alone)


def measure_stock(stock: Any, options: argparse.Namespace, points: Points) -> None:
    """Speech a second of stock: `--stock` of the requests one after the other, and as one batch."""
    asked = requests(stock, options.requests, options.seconds, options.seed)
    asked = sorted(asked, key=lambda one: one.seconds)[(len(asked) - options.stock) // 2 :][: options.stock]
    warm = requests(stock, 1, [0.2], 0)  # what the first call has to prepare
    kept, spoken = points.record["stock"], round(sum(one.seconds for one in asked) * sample_rate(stock))

    def alone() -> dict[str, Any]:
        one_after_the_other(stock, warm)
        made, took_s = one_after_the_other(stock, asked)
        return _rate(stock, sum(map(len, made)), took_s)

    def batch() -> dict[str, Any]:
        one_after_the_other(stock, warm)
        return _rate(stock, spoken, stock_batch(stock, asked))

    points.add("stock", kept, {"how": "alone", "requests": len(asked)}, alone)
    points.add("stock", kept, {"how": "batch", "requests": len(asked)}, batch)


def _rate(model: Any, samples: int, took_s: float) -> dict[str, float]:
    spoken_s = samples / sample_rate(model)
    return {"took_s": took_s, "spoken_s": spoken_s, "speech_a_second": spoken_s / took_s}


def _digest(waveform: Tensor) -> str:
    return hashlib.sha256(waveform.numpy().tobytes()).hexdigest()


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights", nargs="+", default=DEFAULT_WAYS, metavar="WAY", help="such as int8, w8a8-fit-long-kv8"
    )
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="max_rows of the engines, all at once")
    parser.add_argument("--open-rows", type=int, nargs="*", default=(8,), help="max_rows where requests arrive")
    parser.add_argument("--loads", type=float, nargs="*", default=LOADS, help="of one after the other's throughput")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 4.0], help="lengths lie between these")
    parser.add_argument("--seed", type=int, default=0, help="of the lengths")
    parser.add_argument("--stock", type=int, default=2, help="of the requests that stock has to say; 0: none")
    parser.add_argument("--once", action="store_true", help="one after the other before the engines alone")
    parser.add_argument("--shape", default="bark-small")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no point is begun later")
    parser.add_argument("--json", type=Path, help="may have points already")
    parser.add_argument("--plot", type=Path, help="a picture (.png) of the points")
    options = parser.parse_args()
    if not 0 <= options.stock <= options.requests:
        parser.error(f"--stock: expected 0 to --requests ({options.requests}), got {options.stock}")
    for way in options.weights:
        try:
            way_arguments(way)
        except ValueError as error:
            parser.error(f"--weights: {error}")
    quiet_transformers()
    facts = {
        "shape": options.shape,
        "requests": options.requests,
        "seconds": [min(options.seconds), max(options.seconds)],
        "seed": options.seed,
        "policy": _POLICY,
        "machine": machine_facts(),
        "versions": versions(),
        "commit": commit(),
    }
    points = Points(options.json, facts, options.minutes)
    stock = random_bark(options.shape)
    if options.stock:
        measure_stock(stock, options, points)
    for way in options.weights:
        measure(stock, way, options, points)
    print(*comparisons(points.record), sep="\n")
    if points.left:
        print("not measured, for lack of time:", "; ".join(points.left))
    if options.plot and any(its["closed"] for its in points.record["ways"]):
        from benchmarks.generation.plots import save_load

        save_load(options.plot, points.record)


if __name__ == "__main__":
    main()
