"""Decode steps and products of blocks with each instruction set of this CPU, in turns in one process.

python -m benchmarks isas [--isas avx2,avx512_vnni] [--rounds 12] [--json PATH]

bark-small's semantic transformer after 600 tokens, and its MLP's product for 257 tokens, in every precision: medians,
and the shares of the memory's read speed that steps reach.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BarkModel

from bark_accel.bench.measure import commit, machine_facts, spread_of, versions
from bark_accel.bench.models import quiet_transformers, random_bark
from bark_accel.hf.transformer import transformer_weights
from bark_accel.ops import _library
from bark_accel.ops.backend import get_ops
from bark_accel.transformer.layers import linear
from bark_accel.transformer.precision import convert
from benchmarks.ops.interleaved import PROBE_BYTES, ReadProbe
from benchmarks.ops.transformers_steps import CPU, OurForward

CONTEXT, PROMPT_TOKENS = 600, 257
SEMANTIC_ROWS = slice(0, 10_001)
STEPS = [("same", 1), ("float16", 1), ("int8", 1), ("same", 8), ("float16", 8), ("int8", 8)]
PRODUCTS = ("same", "float16", "bfloat16", "int8", "w8a8")


def steps(model: BarkModel) -> Iterator[tuple[str, Callable[[], Tensor], int]]:
    """Name, call and bytes that it reads."""
    for precision, rows in STEPS:
        ids = torch.full((rows, 1), 17)
        forward = OurForward("semantic", model.semantic, ids, CONTEXT, precision, SEMANTIC_ROWS)
        yield f"step, {_name(precision)}, {rows} rows", forward, forward.bytes_read()


def products(model: BarkModel) -> Iterator[tuple[str, Callable[[], Tensor], int]]:
    """Name, call, 0: they are not bound by memory."""
    weights, x = transformer_weights("semantic", model.semantic), torch.randn(1, PROMPT_TOKENS, 768)
    native = get_ops("auto", CPU)
    for precision in PRODUCTS:
        layer = convert(weights, precision).layers[0].mlp_in
        yield f"product, {_name(precision)}", lambda layer=layer: linear(x, layer, native), 0


def _name(precision: str) -> str:
    return "float32" if precision == "same" else precision


def measure(isas: list[str], rounds: int) -> dict[str, Any]:
    """Milliseconds of each call with each set, and shares of the read probe."""
    quiet_transformers()
    library, probe, model = _library.load(), ReadProbe(), random_bark("bark-small")
    calls = [*steps(model), *products(model)]
    seconds: dict[tuple[str, str], list[float]] = {(name, isa): [] for name, _, _ in calls for isa in isas}
    probed: list[float] = []
    own = library.isa()
    try:
        for _ in range(rounds):
            probed.append(_timed(probe))
            for name, call, _ in calls:
                for isa in isas:
                    library.set_isa(isa)
                    call()
                    seconds[name, isa] += [_timed(call), _timed(call)]
    finally:
        library.set_isa(own)
    rate = PROBE_BYTES / spread_of(probed).median
    rows = []
    for name, _, size in calls:
        for isa in isas:
            spread = spread_of(seconds[name, isa])
            share = {"of_read_probe": round(size / spread.median / rate, 3)} if size else {}
            rows.append({"call": name, "isa": isa, "ms": {k: 1e3 * v for k, v in asdict(spread).items()}, **share})
    return {"read_probe_gb_s": rate / 1e9, "rows": rows}


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isas", help="default: all of this CPU but generic")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    available = [isa for isa in _library.load().available_isas() if isa != "generic"]
    isas = given.isas.split(",") if given.isas else available
    with torch.inference_mode():
        found = measure(isas, given.rounds)
    for row in found["rows"]:
        share = f"{row['of_read_probe']:.0%}" if "of_read_probe" in row else ""
        print(f"{row['call']:28} {row['isa']:12} {row['ms']['median']:8.2f} ms {share}")
    record = {"machine": machine_facts(), "versions": versions(), "commit": commit(), **found}
    if given.json:
        given.json.write_text(json.dumps(record, indent=1) + "\n")
