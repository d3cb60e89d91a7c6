"""An engine against `generate` one after the other: the same requests, in turns in one process.

python -m benchmarks engine --weights int8 --json benchmarks/results/zen5_engine.json

All requests are there at the start. A request without a policy gets its whole waveform; its audio is compared, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bark_accel import BarkEngine, accelerate_bark
from bark_accel.bench.measure import commit, machine_facts, versions
from bark_accel.bench.models import fake_inputs, quiet_transformers, random_bark, semantic_tokens
from bark_accel.cli.demo import TEXT
from bark_accel.hf.configs import sample_rate

SECONDS = [1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5]


def requests(model: Any, seconds: list[float]) -> list[dict[str, Any]]:
    """Arguments of `generate`, of one utterance for each of these lengths."""
    lengths = [semantic_tokens(model, each) for each in seconds]
    limits = [{"semantic_max_new_tokens": n, "semantic_min_new_tokens": n} for n in lengths]
    return [{**fake_inputs(model, TEXT), **limit} for limit in limits]


def one_after_the_other(model: Any, asked: list[dict[str, Any]]) -> list[Tensor]:
    """The waveforms [S] of `generate`, the index of a request as its seed."""
    made = []
    for seed, arguments in enumerate(asked):
        torch.manual_seed(seed)
        made.append(model.generate(**arguments)[0].float())
    return made


def through_an_engine(model: Any, asked: list[dict[str, Any]], max_rows: int) -> tuple[list[Tensor], list[float]]:
    """The same waveforms, and the seconds after which each was there."""
    start = time.perf_counter()
    with BarkEngine(model, max_rows=max_rows, max_queued=len(asked)) as engine:
        going = [engine.submit(**arguments, seed=seed) for seed, arguments in enumerate(asked)]
        ready = []
        for request in sorted(going, key=lambda r: asked[r.seed]["semantic_max_new_tokens"]):
            request.result()
            ready.append(time.perf_counter() - start)
    return [request.result() for request in going], ready


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="same")
    parser.add_argument("--rows", type=int, default=8, help="max_rows of the engine")
    parser.add_argument("--seconds", type=float, nargs="+", default=SECONDS, help="of each request")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quiet_transformers()
    model = accelerate_bark(random_bark("bark-small"), weights=options.weights)
    asked = requests(model, options.seconds)
    one_after_the_other(model, requests(model, [0.2]))  # makes the copies of the weights
    spoken_s = 0.0
    runs: dict[str, list[float]] = {"one after the other": [], "engine": []}
    for _ in range(options.repeats):
        start = time.perf_counter()
        alone = one_after_the_other(model, asked)
        between = time.perf_counter()
        together, ready = through_an_engine(model, asked, options.rows)
        runs["one after the other"].append(between - start)
        runs["engine"].append(time.perf_counter() - between)
        equal = [torch.equal(*pair) for pair in zip(alone, together, strict=True)]
        spoken_s = sum(map(len, alone)) / sample_rate(model)
        print(f"{sum(equal)} of {len(equal)} waveforms are equal; ready after", *(f"{s:.1f}" for s in ready), "s")
    medians = {name: statistics.median(each) for name, each in runs.items()}
    for name, seconds in medians.items():
        print(f"{name}: {seconds:.2f} s, {spoken_s / seconds:.2f} s of speech a second")
    if options.json:
        record = {
            "weights": options.weights,
            "rows": options.rows,
            "request_seconds": options.seconds,
            "spoken_s": spoken_s,
            "runs": runs,
            "medians": medians,
            "all_equal": all(equal),
            "ready_s": ready,
            "machine": machine_facts(),
            "versions": versions(),
            "commit": commit(),
        }
        kept = json.loads(options.json.read_text()) if options.json.exists() else []
        options.json.write_text(json.dumps([*kept, record], indent=1) + "\n")


if __name__ == "__main__":
    main()
