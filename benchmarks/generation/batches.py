"""A batch whose rows end at different times: seconds of the two causal stages, in turns in one process.

python -m benchmarks batches --json benchmarks/results/cpu_batches.json

Rows are made to end by putting the end of speech where the sampler draws. The fine stage is left out: below 14 s it
costs the same either way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bark_accel import accelerate_bark
from bark_accel.bench.measure import commit, machine_facts, versions
from bark_accel.bench.models import fake_inputs, quiet_transformers, random_bark, semantic_tokens, shared_copy
from bark_accel.cli.demo import TEXT
from bark_accel.hf.configs import GenerationConfigs
from bark_accel.stages.semantic import SemanticStage, SemanticState

SECONDS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 2.0)


@contextmanager
def rows_of(tokens: Sequence[int], end: int) -> Iterator[None]:
    """Each row of a semantic generation in the block ends after so many tokens."""
    note = SemanticStage._ended

    def ending(self: SemanticStage, state: SemanticState, drawn: Tensor) -> Tensor:
        done = len(state.tokens)
        return note(self, state, drawn.masked_fill(torch.tensor([done >= count for count in tokens]), end))

    SemanticStage._ended = ending  # type: ignore[method-assign]
    try:
        yield
    finally:
        SemanticStage._ended = note  # type: ignore[method-assign]


def seconds_of(model: Any, tokens: Sequence[int], *, ending: bool) -> dict[str, float]:
    """Measure the seconds of each causal stage; without `ending`, the semantic stage is as long in every row."""
    configs = GenerationConfigs.of(model)
    semantic, coarse = configs.semantic, configs.coarse
    inputs = {k: v.repeat(len(tokens), 1) for k, v in fake_inputs(model, TEXT).items()}
    options = {"semantic_generation_config": semantic, "max_new_tokens": max(tokens), **inputs}
    start = time.perf_counter()
    with rows_of(tokens if ending else [max(tokens)] * len(tokens), semantic.eos_token_id):
        spoken = model.semantic.generate(**options)
    between = time.perf_counter()
    for row, count in enumerate(tokens):
        spoken[row, count:] = semantic.semantic_pad_token
    model.coarse_acoustics.generate(spoken, semantic, coarse)
    return {"semantic": between - start, "coarse": time.perf_counter() - between}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="same")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quiet_transformers()
    model = random_bark("bark-small")
    tokens = [semantic_tokens(model, seconds) for seconds in SECONDS]
    models = {
        "to the longest row's end": accelerate_bark(model, weights=options.weights),
        "to each row's own": accelerate_bark(
            shared_copy(model), weights=options.weights, fix_stock_bugs=["batch_tails"]
        ),
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    for _ in range(options.repeats):
        for name, fast in models.items():
            runs[name].append(seconds_of(fast, tokens, ending=name == "to each row's own"))
    medians = {
        name: {stage: statistics.median(run[stage] for run in each) for stage in each[0]} for name, each in runs.items()
    }
    for name, median in medians.items():
        print(name, *(f"{stage} {seconds:.2f} s" for stage, seconds in median.items()), sep="  ")
    if options.json:
        record = {
            "weights": options.weights,
            "row_seconds": SECONDS,
            "runs": runs,
            "medians": medians,
            "machine": machine_facts(),
            "versions": versions(),
            "commit": commit(),
        }
        kept = json.loads(options.json.read_text()) if options.json.exists() else []
        options.json.write_text(json.dumps([*kept, record], indent=1) + "\n")
