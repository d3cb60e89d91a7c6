"""Tools of the processes of a run: rows that are sent as they are measured, clocks, models."""

from __future__ import annotations

import contextlib
import importlib
import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bark_accel import accelerate_bark, acceleration_report, restore_bark
from bark_accel.bench import models as checkpoints
from bark_accel.bench.measure import commit, machine_facts, versions
from bark_accel.ops._library import cuda_archs, load
from benchmarks.gpu.plan import Job, Plan


class Rows:
    """Sends each row when it is measured. A case that fails is a row that says how, one without time a note."""

    def __init__(self, plan: Plan, seconds: float, send: Callable[[tuple], None]):
        self._plan, self._send = plan, send
        self._end = time.monotonic() + seconds

    def facts(self, **facts: Any) -> None:
        """Send facts that belong to the whole file."""
        self._send(("facts", facts))

    def leave_out(self, table: str, case: dict[str, Any], reason: str) -> None:
        """Note a case that cannot be measured here."""
        self._send(("left_out", f"{label(table, case)}: {reason}"))

    def add(self, table: str, case: dict[str, Any], measure: Callable[[], dict[str, Any]], needs_s: float = 0) -> None:
        """Measure a case that takes about `needs_s` seconds on a GPU.

        Raises
        ------
        RuntimeError
            The device does not work any more, so that nothing else can be measured in this process.
        """
        if self._end - time.monotonic() < (needs_s if self._plan.on_gpu else 0):
            self._send(("left_out_for_lack_of_time", label(table, case)))
            return
        self._send(("begin", label(table, case)))
        began = time.monotonic()
        if self._plan.on_gpu:
            torch.cuda.reset_peak_memory_stats(self._plan.device)
        try:
            row = json.loads(json.dumps(measure(), allow_nan=False))
        except Exception as error:
            traceback.print_exc()
            row = {"error": f"{type(error).__name__}: {error}"[:500]}
        if self._plan.on_gpu and "error" not in row:
            row.setdefault("peak_memory_bytes", torch.cuda.max_memory_allocated(self._plan.device))
        self._send(("row", table, {**case, **row, "took_s": time.monotonic() - began}))
        if "error" in row and self._plan.on_gpu:
            self._check_device()

    def _check_device(self) -> None:
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as error:
            raise RuntimeError(f"the device is lost to this process: {error}") from error


def label(table: str, case: dict[str, Any]) -> str:
    return f"{table}: {', '.join(map(str, case.values()))}"


def measure(job: Job, plan: Plan, seconds: float, send: Callable[[tuple], None]) -> None:
    """Call the function that the job names."""
    module, _, function = job.measure.partition(":")
    checkpoints.quiet_transformers()
    with torch.no_grad():
        getattr(importlib.import_module(module), function)(plan, Rows(plan, seconds, send), job)


def measure_machine(plan: Plan, rows: Rows, job: Job) -> None:
    """Raises `RuntimeError` where there is nothing to measure on."""
    load()
    archs = cuda_archs()
    if plan.on_gpu and (not torch.cuda.is_available() or archs is None):
        raise RuntimeError("expected a GPU and a library built with CUDA (`make gpu-build` builds it)")
    machine = {**machine_facts(), "device": plan.device, "cuda": torch.version.cuda, "archs": archs}
    rows.facts(machine=machine, versions=versions(), commit=commit())
    rows.facts(read_bandwidth_bytes_per_s=read_bandwidth(plan))


def read_bandwidth(plan: Plan) -> float:
    """Bytes a second of a large reduction, the ceiling that steps are compared with."""
    data = torch.ones(plan.probe_bytes // 4, dtype=torch.float32, device=plan.device)
    return data.nbytes / timed_ms(plan, data.sum, 10) * 1e3


def build_model(plan: Plan, job: Job) -> Any:
    """The job's model, its weights drawn where it runs; in a dry run the small Bark of the package."""
    if job.shape in checkpoints.SHAPES:
        model = checkpoints.random_bark(job.shape, device=plan.device)
    else:
        model = checkpoints.load_bark().model
    return model.to(plan.device, getattr(torch, job.dtype))


@contextlib.contextmanager
def accelerated(model: Any, **options: Any) -> Iterator[Any]:
    """The model accelerated in the block; raises `RuntimeError` at its end if a stage ran Transformers' own code.

    Not `strict=True`, which few use, and which looks at all stages before the first of them works.
    """
    fast = accelerate_bark(model, **options)
    try:
        yield fast
        report = acceleration_report(fast)
        reasons = [*report.fallbacks, *(stage.blocked_by for stage in report.stages if stage.blocked_by)]
        if reasons:
            raise RuntimeError(f"fell back to Transformers' own code: {'; '.join(map(str, reasons))}")
    finally:
        restore_bark(fast)


def synchronize(plan: Plan) -> None:
    if plan.on_gpu:
        torch.cuda.synchronize(plan.device)


def timed_ms(plan: Plan, call: Callable[[], Any], rounds: int, inner: int = 1) -> float:
    """Median milliseconds of one call: by CUDA events, or the clock on a CPU."""
    for _ in range(3):
        call()
    times = []
    for _ in range(rounds):
        if plan.on_gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(inner):
                call()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / inner)
        else:
            began = time.perf_counter()
            for _ in range(inner):
                call()
            times.append((time.perf_counter() - began) / inner * 1e3)
    return statistics.median(times)
