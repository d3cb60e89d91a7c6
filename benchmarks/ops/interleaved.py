"""Benchmarks in which ours and every baseline take turns, so that a busy machine slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

PROBE_BYTES = 400 * 2**20
STEP = "a step of one token"
WIDER_CACHE = "a cache of 16 bits"


def compare(
    benchmark: Any,
    group: str,
    ours: Callable[[], object],
    baselines: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    back_to_back: bool = True,
    **facts: float,
) -> None:
    """Time `ours`, and before each of its rounds every baseline once.

    `back_to_back`: every timed call follows an untimed one of the same kind, as in a loop that does nothing else.
    The baselines' seconds and `facts` (such as the bytes that a call has to read) are kept in the benchmark's
    `extra_info`; `summarise.py` makes medians, ratios and shares of the ceilings of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in baselines}
    for call in (*baselines.values(), ours):
        call()

    def baselines_once() -> None:
        for name, call in baselines.items():
            if back_to_back:
                call()
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
        if back_to_back:
            ours()

    benchmark.group = group
    benchmark.pedantic(ours, setup=baselines_once, rounds=rounds, iterations=1)
    benchmark.extra_info.update(facts, baselines=seconds)


class ReadProbe:
    """Reads `PROBE_BYTES` of memory that no cache holds, on all threads: what a step bound by memory can reach."""

    def __init__(self) -> None:
        self._memory = torch.ones(PROBE_BYTES // 4)

    def __call__(self) -> None:
        self._memory.sum()


class GemmProbe:
    """The float32 matrix product of Bark's MLP, by torch's library: what a block of tokens can reach."""

    rows, inner, outputs = 1024, 768, 3072
    multiply_adds = rows * inner * outputs

    def __init__(self) -> None:
        self._input, self._weight = torch.randn(self.rows, self.inner), torch.randn(self.outputs, self.inner)

    def __call__(self) -> None:
        torch.nn.functional.linear(self._input, self._weight)
