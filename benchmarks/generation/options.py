"""Step rate of the semantic stage with options of `generate`, in turns with the plain accelerated stage.

Random weights of bark-small's shapes. `python -m benchmarks options [--json PATH]`; a file that is there is added to,
so that a busy machine can be measured in pieces (`--weights int8 --rows 1`).

Drafts are as good as the scores are far apart: of random weights, which a penalty flattens, more are wrong than of a
trained model, and `of_plain` falls as `draft_rounds` grow. What a step costs stands in `of_plain_without_drafts` of the
rows without drafts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.generation.streamers import BaseStreamer

from bark_accel import accelerate_bark
from bark_accel.bench.measure import commit, machine_facts, versions
from bark_accel.bench.models import random_bark, shared_copy
from bark_accel.hf.configs import GenerationConfigs

ALLOWED = torch.arange(10_000, dtype=torch.int64)


class Clock(BaseStreamer):
    """Notes when each token is there; the first call is the prompt's."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass

    @property
    def tokens_per_s(self) -> float:
        return (len(self.times) - 2) / (self.times[-1] - self.times[1])


PLAIN, WITHOUT_DRAFTS = "plain", "plain, without drafts"
OPTIONS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    WITHOUT_DRAFTS: {},
    "min_new_tokens": {"min_new_tokens": 30},
    "repetition_penalty": {"repetition_penalty": 1.2},
    "repetition_penalty, without drafts": {"repetition_penalty": 1.2},
    "min_p": {"min_p": 0.05},
    "typical_p": {"typical_p": 0.9},
    "epsilon_cutoff": {"epsilon_cutoff": 0.001},
    "eta_cutoff": {"eta_cutoff": 0.001},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 4},
    "caller's processor": {"prefix_allowed_tokens_fn": lambda row, ids: ALLOWED},
}


@torch.no_grad()
def measure(weights: str, rows: int, tokens: int, repeats: int) -> list[dict[str, Any]]:
    """Tokens a second of a text after its first with each option, and of stock once: `rows` texts, `tokens` each."""
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
    rates: dict[str, list[float]] = {name: [] for name in OPTIONS}
    counts, rounds = model.semantic.generate.__self__.draft_counts, {}

    def rate(generate: Callable[..., Any], **options: Any) -> float:
        torch.manual_seed(0)
        clock = Clock()
        made = generate(ids, **base, **options, streamer=clock).shape[1]
        assert made == tokens == len(clock.times) - 1, f"expected {tokens} tokens, got {made}"
        return clock.tokens_per_s

    for round_ in range(repeats + 1):
        for name, options in OPTIONS.items():
            before = counts.rounds
            its = rate((undrafted if name.endswith("without drafts") else model).semantic.generate, **options)
            rates[name] += [its] if round_ else []
            rounds[name] = counts.rounds - before
    stock_rate = rate(partial(stock, model.semantic), repetition_penalty=1.2)
    medians = {name: statistics.median(its) for name, its in rates.items()}
    return [
        {
            "option": name,
            "weights": weights,
            "rows": rows,
            "tokens": tokens,
            "tokens_per_s": medians[name],
            "draft_rounds": rounds[name],
            "all_tokens_per_s": rates[name],
            "of_plain": medians[name] / medians[PLAIN],
            "of_plain_without_drafts": medians[name] / medians[WITHOUT_DRAFTS],
            "of_stock_with_repetition_penalty": medians[name] / stock_rate,
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
                print(
                    {k: round(v, 2) if isinstance(v, float) else v for k, v in row.items() if k[:3] != "all"},
                    flush=True,
                )
    if arguments.json:
        if arguments.json.exists():
            rows = json.loads(arguments.json.read_text())["rows"] + rows
        content = {"machine": machine_facts(), "versions": versions(), "commit": commit(), "rows": rows}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
