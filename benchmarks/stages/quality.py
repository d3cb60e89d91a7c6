"""Cost of smaller weights and of an int8 cache: teacher-forced logits against float32, bark-small, random weights.

python -m benchmarks quality --json benchmarks/results/cpu_quality.json

Relative error of the logits (the norm of the difference over the norm), KL divergence in nats, and how often the most
likely token is the same. Random weights give logits without the structure of trained ones: read these as numerics.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bark_accel.bench.measure import commit, machine_facts, versions
from bark_accel.bench.models import quiet_transformers, random_bark
from bark_accel.hf.transformer import transformer_spec, transformer_weights
from bark_accel.ops.backend import get_ops
from bark_accel.transformer.bidirectional import bidirectional_forward
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCachePool
from bark_accel.transformer.layers import linear
from bark_accel.transformer.precision import WEIGHTS, convert
from benchmarks.ops.transformers_steps import CPU

# (prompt tokens that are prefilled, tokens that are fed one at a time)
INT8_CACHE = " with int8 cache"
CONTEXTS = {"semantic": {"257 + 100": (257, 100), "257 + 700": (257, 700)}, "coarse": {"887 + 60": (887, 60)}}


def causal_scores(stage: str, module: Any, way: str, prompt: int, fed: int) -> Tensor:
    """[fed + 1, V] of the same random tokens in every way: a precision, with `INT8_CACHE` behind it or not."""
    weights = convert(transformer_weights(stage, module), way.removesuffix(INT8_CACHE))
    spec, model_ops = transformer_spec(module), get_ops("auto", CPU)
    cache_dtype = torch.int8 if way.endswith(INT8_CACHE) else None
    model, rows = CausalModel(weights, spec, model_ops, None, cache_dtype), slice(0, spec.output_vocab_size)
    ids = torch.randint(0, 10_000, (1, prompt + fed), generator=torch.Generator().manual_seed(0))
    with KVCachePool().borrow(spec, 1, model.cache_dtype, CPU) as cache:
        scores = [model.next_logits(ids[:, :prompt], cache, rows)]
        scores += [model.next_logits(token, cache, rows) for token in ids[:, prompt:].split(1, dim=1)]
    return torch.cat(scores)


def fine_scores(module: Any, precision: str) -> Tensor:
    """[1024, codes] of the last codebook."""
    weights, ops = convert(transformer_weights("fine", module), precision), get_ops("auto", CPU)
    codes = torch.randint(0, 1024, (1, 1024, 8), generator=torch.Generator().manual_seed(0))
    hidden = ops.codebook_embedding_sum(codes, weights.token_tables, weights.positions)
    hidden = bidirectional_forward(weights, transformer_spec(module), hidden, ops)
    return linear(hidden, weights.heads[-1], ops)[0]


def distance(expected: Tensor, got: Tensor) -> dict[str, float]:
    expected, got = expected.double(), got.double()
    kl = F.kl_div(got.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="batchmean")
    return {
        "relative_error": ((got - expected).norm() / expected.norm()).item(),
        "kl_nats": kl.item(),
        "top_1_agreement": (got.argmax(-1) == expected.argmax(-1)).double().mean().item(),
    }


@torch.inference_mode()
def measure() -> dict[str, dict[str, dict[str, float]]]:
    quiet_transformers()
    bark = random_bark("bark-small")
    parts = {"semantic": bark.semantic, "coarse": bark.coarse_acoustics}
    ways = [*WEIGHTS, *(precision + INT8_CACHE for precision in ("same", "float16", "int8"))]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for stage, contexts in CONTEXTS.items():
        for name, (prompt, fed) in contexts.items():
            scores = {way: causal_scores(stage, parts[stage], way, prompt, fed) for way in ways}
            found[f"{stage}, {name}"] = {way: distance(scores["same"], scores[way]) for way in ways[1:]}
    scores = {p: fine_scores(bark.fine_acoustics, p) for p in WEIGHTS}
    found["fine, last codebook"] = {p: distance(scores["same"], scores[p]) for p in WEIGHTS[1:]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure()
    for name, precisions in found.items():
        for precision, values in precisions.items():
            print(f"{name:24} {precision:24}", "  ".join(f"{key} {value:.2e}" for key, value in values.items()))
    if options.json:
        record = {"machine": machine_facts(), "versions": versions(), "commit": commit(), "against_float32": found}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
