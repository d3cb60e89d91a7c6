"""Tokens a second of the semantic stage with options of `generate`, in turns with the plain accelerated stage.

Random weights of bark-small's shapes. `python -m benchmarks options [--json PATH]`; a file that is there is added to, so
that a busy machine can be measured in pieces (`--weights int8 --rows 1`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from bark_accel import accelerate_bark
from bark_accel.bench.measure import commit, machine_facts, versions
from bark_accel.bench.models import random_bark, shared_copy
from bark_accel.hf.configs import GenerationConfigs


def prefix_allowed(row: int, ids: torch.Tensor) -> list[int]:
    return list(range(10_000))


PLAIN, WITHOUT_DRAFTS = "plain", "plain, without drafts"
OPTIONS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    WITHOUT_DRAFTS: {},
    "min_new_tokens": {"min_new_tokens": 500},
    "repetition_penalty": {"repetition_penalty": 1.2},
    "min_p": {"min_p": 0.05},
    "beams": {"num_beams": 2, "do_sample": False},
    "caller's processor": {"prefix_allowed_tokens_fn": prefix_allowed},
}


@torch.no_grad()
def measure(weights: str, rows: int, tokens: int, repeats: int) -> list[dict[str, Any]]:
    """Seconds of each option, and of stock once, for `rows` texts and `tokens` tokens."""
    model = random_bark("bark-small")
    config = GenerationConfigs.of(model).semantic
    ids = torch.randint(0, 1000, (rows, 256), generator=torch.Generator().manual_seed(0))
    base = {"do_sample": True, "max_new_tokens": tokens, "semantic_generation_config": config}
    # Random weights seldom end by themselves; a text that ends would shorten one of the two.
    config.eos_token_id = config.semantic_pad_token
    stock = type(model.semantic).generate
    undrafted = shared_copy(model)
    accelerate_bark(model, weights=weights, strict=True)
    accelerate_bark(undrafted, weights=weights, strict=True, speculate=False)
    seconds: dict[str, list[float]] = {name: [] for name in OPTIONS}
    made: dict[str, int] = {}

    def timed(name: str) -> float:
        torch.manual_seed(0)
        start = time.perf_counter()
        its = undrafted if name == WITHOUT_DRAFTS else model
        made[name] = its.semantic.generate(ids, **base | OPTIONS[name]).shape[1]
        return time.perf_counter() - start

    for round_ in range(repeats + 1):
        for name in OPTIONS:
            took = timed(name)
            if round_:
                seconds[name].append(took)
    torch.manual_seed(0)
    start = time.perf_counter()
    stock_tokens = stock(model.semantic, ids, **base, repetition_penalty=1.2).shape[1]
    stock_rate = stock_tokens / (time.perf_counter() - start)
    rates = {name: made[name] / statistics.median(took) for name, took in seconds.items()}
    return [
        {
            "option": name,
            "weights": weights,
            "rows": rows,
            "tokens": made[name],
            "tokens_per_s": rates[name],
            "of_plain": rates[name] / rates[PLAIN],
            "of_plain_without_drafts": rates[name] / rates[WITHOUT_DRAFTS],
            "of_stock_with_repetition_penalty": rates[name] / stock_rate,
        }
        for name in OPTIONS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--weights", nargs="+", default=["same", "int8"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    rows = []
    for weights in arguments.weights:
        for count in arguments.rows:
            rows += measure(weights, count, arguments.tokens, arguments.repeats)
            for row in rows[-len(OPTIONS) :]:
                print({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    if arguments.json:
        if arguments.json.exists():
            rows = json.loads(arguments.json.read_text())["rows"] + rows
        content = {"machine": machine_facts(), "versions": versions(), "commit": commit(), "rows": rows}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
