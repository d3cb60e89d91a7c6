"""Step rate of the semantic stage with options of `generate`, in turns with the plain accelerated stage.

Random weights of bark-small's shapes. `python -m benchmarks options [--json PATH]`; to a file that is there rounds are
added, so that a busy machine can be measured in pieces (`--weights int8 --rows 1 --repeats 1`). Ratios are medians of
those within each round; stock's rate is that of float32 in any of the rounds.

Drafts are as good as the scores are far apart: of random weights, which a penalty flattens, more are wrong than of a
trained model, and `of_plain` falls as `draft_rounds` grow. What a step costs stands in `of_plain_without_drafts` of the
rows without drafts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
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


PLAIN, WITHOUT_DRAFTS, STOCK = "plain", "plain, without drafts", "stock"
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
    "caller's criterion": {"stopping_criteria": [lambda ids, scores, **others: ids.new_zeros(len(ids)).bool()]},
    STOCK: {"repetition_penalty": 1.2},
}


@torch.no_grad()
def measure(weights: str, rows: int, tokens: int, repeats: int, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rounds of the named options in turns: tokens a second of each text after its first, of `rows` texts at once."""
    model = random_bark("bark-small")
    config = GenerationConfigs.of(model).semantic
    ids = torch.randint(0, 1000, (rows, 256), generator=torch.Generator().manual_seed(0))
    base = {"do_sample": True, "semantic_generation_config": config}
    # Random weights seldom end by themselves; a text that ends would shorten one of the two.
    config.eos_token_id = config.semantic_pad_token
    stock, undrafted = shared_copy(model), shared_copy(model)
    accelerate_bark(model, weights=weights, strict=True)
    accelerate_bark(undrafted, weights=weights, strict=True, speculate=False)
    counts = model.semantic.generate.__self__.draft_counts

    def rate(name: str, tokens: int) -> float:
        torch.manual_seed(0)
        clock = Clock()
        on = stock if name == STOCK else undrafted if name.endswith("without drafts") else model
        made = on.semantic.generate(ids, **base, **OPTIONS[name], max_new_tokens=tokens, streamer=clock).shape[1]
        assert made == tokens == len(clock.times) - 1, f"expected {tokens} tokens, got {made}"
        return clock.tokens_per_s

    for name in names:
        rate(name, 20)
    for _ in range(repeats):
        rates, drafted = {}, {}
        for name in names:
            before = counts.rounds
            rates[name] = rate(name, tokens)
            drafted[name] = counts.rounds - before
        kind = {"weights": weights, "rows": rows, "tokens": tokens}
        yield {**kind, "tokens_per_s": rates, "draft_rounds": drafted}


def summary(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each option of each kind of round: medians, and medians of the ratios within each round."""
    rows = []
    for kind in dict.fromkeys((r["weights"], r["rows"], r["tokens"]) for r in rounds):
        own = [r for r in rounds if (r["weights"], r["rows"], r["tokens"]) == kind]

        def ratio(name: str, to: str, own: list[dict[str, Any]] = own) -> float | None:
            both = [r["tokens_per_s"] for r in own if {name, to} <= r["tokens_per_s"].keys()]
            return statistics.median(rates[name] / rates[to] for rates in both) if both else None

        stock = [r["tokens_per_s"][STOCK] for r in rounds if r["rows"] == kind[1] and STOCK in r["tokens_per_s"]]
        for name in OPTIONS:
            rates = [r["tokens_per_s"][name] for r in own if name in r["tokens_per_s"]]
            if rates:
                rows.append(
                    {
                        "option": name,
                        **dict(zip(("weights", "rows", "tokens"), kind, strict=True)),
                        "tokens_per_s": statistics.median(rates),
                        "draft_rounds": next(r["draft_rounds"][name] for r in own if name in r["draft_rounds"]),
                        "all_tokens_per_s": rates,
                        "of_plain": ratio(name, PLAIN),
                        "of_plain_without_drafts": ratio(name, WITHOUT_DRAFTS),
                        "of_stock_with_repetition_penalty": statistics.median(rates) / statistics.median(stock)
                        if stock
                        else None,
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=700)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--weights", nargs="+", default=["same", "int8"])
    parser.add_argument("--options", nargs="+", default=list(OPTIONS), choices=list(OPTIONS), metavar="NAME")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    known = arguments.json is not None and arguments.json.exists()
    rounds = json.loads(arguments.json.read_text()).get("rounds") if known else []
    if rounds is None:
        parser.error(f"--json: expected a new file or one with rounds, got {arguments.json}, which has none")
    for weights in arguments.weights:
        for count in arguments.rows:
            for round_ in measure(weights, count, arguments.tokens, arguments.repeats, arguments.options):
                rounds.append(round_)
                rows = summary(rounds)
                if arguments.json:
                    facts = {"machine": machine_facts(), "versions": versions(), "commit": commit()}
                    content = {**facts, "rows": rows, "rounds": rounds}
                    arguments.json.write_text(json.dumps(content, indent=2) + "\n")
            for row in summary(rounds):
                if (row["weights"], row["rows"]) == (weights, count):
                    shown = {k: v for k, v in row.items() if k[:3] != "all"}
                    print({k: round(v, 2) if isinstance(v, float) else v for k, v in shown.items()}, flush=True)
