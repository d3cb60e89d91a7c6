"""What `gpu.py` measures with, and the file it writes to."""

from __future__ import annotations

import contextlib
import json
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from bark_accel.bench import models as checkpoints
from bark_accel.bench.measure import commit, machine_facts, versions
from bark_accel.ops._library import cuda_archs

# The most telling first: what there is no time for comes last.
TABLES = ("decode_step", "generate", "first_sound", "docs", "variants")


@dataclass
class Plan:
    """What to measure, and where."""

    device: torch.device
    shapes: tuple[str, ...] = ("bark-small", "bark")
    batch_sizes: tuple[int, ...] = (1, 8)
    tables: tuple[str, ...] = TABLES
    semantic_tokens: int = 256
    docs_batch_sizes: tuple[int, ...] = (1, 4, 8, 16)
    docs_semantic_tokens: int = 400
    context_tokens: int = 600
    repeats: int = 4
    probe_bytes: int = 2**32
    seconds: float = 330
    build: Callable[[str], Any] = checkpoints.random_bark
    started_s: float = field(default_factory=time.monotonic)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def launches_early(self) -> bool:
        """Whether the device knows programmatic dependent launch."""
        return self.on_gpu and torch.cuda.get_device_capability(self.device) >= (9, 0)

    @property
    def left_s(self) -> float:
        return self.started_s + self.seconds - time.monotonic()

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


class Results:
    """A JSON file that grows row by row. A case that fails leaves a row that says how, one without time a note."""

    def __init__(self, path: Path, plan: Plan, parity: Path | None = None):
        self._path, self._plan = path, plan
        facts = {"device": str(plan.device), "driver": driver(), "cuda": torch.version.cuda, "archs": cuda_archs()}
        self.content: dict[str, Any] = {
            "machine": {**machine_facts(), **facts},
            "versions": versions(),
            "commit": commit(),
            "parity_tests": None if parity is None else parity_outcomes(parity),
            "semantic_tokens": plan.semantic_tokens,
            "context_tokens": plan.context_tokens,
            "read_bandwidth_bytes_per_s": None,
            "decode_step": [],
            "kernels": [],
            "first_sound": [],
            "generate": [],
            "docs": [],
            "failed": [],
            "left_out": [],
            "left_out_for_lack_of_time": [],
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.save()

    @contextlib.contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """An error inside is written down, and the rest goes on."""
        try:
            yield
        except Exception as error:
            self.content["failed"].append({"what": what, "error": one_line(error)})
            print(f"FAILED: {what}: {one_line(error)}", flush=True)
        self.save()

    def leave_out(self, table: str, case: dict[str, Any], reason: str) -> None:
        """Note a case that cannot be measured here."""
        self.content["left_out"].append(f"{table}: {', '.join(map(str, case.values()))}: {reason}")
        self.save()

    def save(self) -> None:
        self._path.write_text(json.dumps(self.content, indent=2) + "\n")

    def add(self, table: str, case: dict[str, Any], measure: Callable[[], dict[str, Any]], needs_s: float) -> None:
        """Measure a case that takes about `needs_s` seconds."""
        label = ", ".join(map(str, case.values()))
        if self._plan.left_s < needs_s:
            self.content["left_out_for_lack_of_time"].append(f"{table}: {label}")
        else:
            try:
                with time_limit(max(self._plan.left_s, 1)):
                    row = measure()
            except Exception as error:
                row = {"error": one_line(error)}
            self.content[table].append({**case, **row})
            print(f"{table}: {label}: {summary(row)}", flush=True)
        self.save()


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def parity_outcomes(junit: Path) -> dict[str, Any]:
    """Of a pytest run, from its `--junitxml`: how many tests passed, failed and were skipped, and which failed.

    Without the file the run did not get to its end, and the outcome is an error.
    """
    if not junit.is_file():
        return {"error": f"{junit} was not written"}
    cases = ElementTree.parse(junit).getroot().findall(".//testcase")
    failed = [f"{c.get('classname')}::{c.get('name')}" for c in cases if {"failure", "error"} & {e.tag for e in c}]
    skipped = sum(c.find("skipped") is not None for c in cases)
    return {"passed": len(cases) - len(failed) - skipped, "skipped": skipped, "failed": failed}


def summary(row: dict[str, Any]) -> str:
    numbers = {k: v for k, v in row.items() if isinstance(v, (float, str))}
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items())


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises `TimeoutError` inside: what compiles may take any time."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"cut off after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


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
