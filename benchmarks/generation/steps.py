"""Decode steps inside a whole generation: share of the memory's read speed that they reach, probed in the same run.

python -m benchmarks steps [--seconds 5] [--batch 1] [--modes "float32; int8"] [--repeats 2] [--json PATH]

Every 20th step is followed by a probe of the memory and by the same step again, back to back: what a step in a loop
that does nothing else reaches. The step behind these is not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor
from transformers import BarkModel

from bark_accel import accelerate_bark
from bark_accel.bench.measure import commit, machine_facts, run_once, versions, warm_up
from bark_accel.bench.models import fake_inputs, quiet_transformers, random_bark, semantic_tokens, shared_copy
from bark_accel.cli.demo import TEXT
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCache
from bark_accel.transformer.weights import tensors_of
from benchmarks.generation.mode_names import some_of
from benchmarks.ops.interleaved import PROBE_BYTES, ReadProbe

MODES: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, no drafts": {"speculate": False},
    "float16": {"weights": "float16"},
    "float16, no drafts": {"weights": "float16", "speculate": False},
    "int8": {"weights": "int8"},
    "int8 with int8 cache": {"weights": "int8", "kv_cache_dtype": "int8"},
}
_EVERY = 20  # steps
_AGAIN = 2  # counted repetitions
_FEWEST = 10  # steps of a kind that is reported


@dataclass
class Kind:
    """Steps of one stage, dtype of weights and number of tokens: seconds and bytes read by each."""

    seconds: list[float] = field(default_factory=list)
    bytes_read: list[int] = field(default_factory=list)
    again_s: list[float] = field(default_factory=list)
    again_bytes: list[int] = field(default_factory=list)

    def summary(self, probe: float) -> dict[str, float]:
        """Medians, and shares of the probe's bytes a second."""
        found = {
            "steps": len(self.seconds),
            "step_ms": 1e3 * statistics.median(self.seconds),
            "of_probe": _rate(self.bytes_read, self.seconds) / probe,
        }
        if self.again_s:
            found["back_to_back_of_probe"] = _rate(self.again_bytes, self.again_s) / probe
        return found


def _rate(bytes_read: list[int], seconds: list[float]) -> float:
    """Median bytes a second."""
    return statistics.median(b / s for b, s in zip(bytes_read, seconds, strict=True))


class StepClock:
    """Takes the time of every decode step of any model while `running`."""

    def __init__(self, stages: Mapping[int, str]) -> None:
        """Name models by the numbers of their scores."""
        self.kinds: dict[str, Kind] = {}
        self.probe_s: list[float] = []
        self._stages = stages
        self._probe, self._step = ReadProbe(), CausalModel.step_logits
        self._matrices: dict[int, int] = {}
        self._skip, self._count = 0, 0

    @property
    def probe(self) -> float:
        """Bytes a second that the memory gave."""
        return PROBE_BYTES / statistics.median(self.probe_s)

    @contextmanager
    def running(self) -> Iterator[None]:
        clock = self

        def step(model: CausalModel, ids: Tensor, cache: KVCache, rows: slice) -> Tensor:
            return clock._timed(model, ids, cache, rows)

        with mock.patch.object(CausalModel, "step_logits", step):
            yield

    def _timed(self, model: CausalModel, ids: Tensor, cache: KVCache, rows: slice) -> Tensor:
        seconds, logits = self._once(model, ids, cache, rows)
        kind = self.kinds.setdefault(self._name(model, ids), Kind())
        size = self._bytes(model, ids, cache, rows)
        self._count += 1
        if self._skip:
            self._skip -= 1
        else:
            kind.seconds.append(seconds)
            kind.bytes_read.append(size)
        if self._count % _EVERY == 0:
            self._skip = 1
            start = time.perf_counter()
            self._probe()
            self.probe_s.append(time.perf_counter() - start)
            self._once(model, ids, cache, rows)
            for _ in range(_AGAIN):
                kind.again_s.append(self._once(model, ids, cache, rows)[0])
                kind.again_bytes.append(size)
        return logits

    def _once(self, model: CausalModel, ids: Tensor, cache: KVCache, rows: slice) -> tuple[float, Tensor]:
        start = time.perf_counter()
        logits = self._step(model, ids, cache, rows)
        return time.perf_counter() - start, logits

    def _name(self, model: CausalModel, ids: Tensor) -> str:
        dtype = str(model.weights.layers[0].qkv.weight.dtype).removeprefix("torch.")
        return f"{self._stages[model.spec.output_vocab_size]}, {dtype}, {ids.shape[0]} x {ids.shape[1]}"

    def _bytes(self, model: CausalModel, ids: Tensor, cache: KVCache, rows: slice) -> int:
        """Count matrices, vectors, the head's rows, and the cache."""
        weights, head = model.weights, model.weights.heads[0]
        if id(model) not in self._matrices:
            parts = tensors_of((weights.layers, weights.norm_final))
            self._matrices[id(model)] = sum(t.nbytes for t in parts)
        share = (rows.stop - rows.start) / len(head.weight)
        cached = (cache.position + ids.shape[1]) / cache.capacity * cache.nbytes
        return int(self._matrices[id(model)] + share * sum(t.nbytes for t in tensors_of(head)) + cached)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--modes", default=list(MODES), help=f"of {'; '.join(MODES)} (separated by ;)", type=some_of(MODES)
    )
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    quiet_transformers()
    stock = random_bark("bark-small")
    arguments = {k: v.repeat(given.batch, 1) for k, v in fake_inputs(stock, TEXT).items()}
    arguments["semantic_max_new_tokens"] = semantic_tokens(stock, given.seconds)
    models = {mode: accelerate_bark(shared_copy(stock), strict=True, **MODES[mode]) for mode in given.modes}
    clocks = {mode: StepClock(stages_of(stock)) for mode in given.modes}
    for model in models.values():
        warm_up(model, arguments)
    for seed in range(given.repeats):
        for mode, model in models.items():
            with clocks[mode].running():
                run = run_once(model, arguments, seed)
            print(mode, {stage: round(s, 2) for stage, s in run.seconds.items()}, flush=True)
    record = {
        "machine": machine_facts(),
        "versions": versions(),
        "commit": commit(),
        "seconds": given.seconds,
        "batch": given.batch,
        "modes": {mode: summary(clock) for mode, clock in clocks.items()},
    }
    print(json.dumps(record["modes"], indent=1))
    if given.json:
        given.json.write_text(json.dumps(record, indent=1) + "\n")


def summary(clock: StepClock) -> dict[str, Any]:
    """Sum up what the memory gave, and each kind of step."""
    kinds = {name: kind.summary(clock.probe) for name, kind in clock.kinds.items() if len(kind.seconds) >= _FEWEST}
    return {"read_probe_gb_s": clock.probe / 1e9, "steps": kinds}


def stages_of(model: BarkModel) -> dict[int, str]:
    """The causal stages by the numbers of their scores."""
    stages = {"semantic": model.semantic, "coarse": model.coarse_acoustics}
    return {stage.config.output_vocab_size: name for name, stage in stages.items()}
