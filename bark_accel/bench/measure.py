"""Runs stock and accelerated models side by side, and sums up what was measured where."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import bark_accel
from bark_accel import _cpus
from bark_accel.stages.spec import STAGES, TOKEN_STAGES

if TYPE_CHECKING:
    from transformers import BarkModel

WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Run:
    """One generation: seconds by stage, seconds in all, each stage's output, seconds of audio."""

    seconds: dict[str, float]
    total_s: float
    outputs: dict[str, Any]
    audio_s: float


@dataclass(frozen=True)
class Spread:
    median: float
    p20: float
    p80: float


@dataclass(frozen=True)
class Comparison:
    """Seconds of one stage, or of the whole (`total`), over all runs."""

    stage: str
    stock: Spread
    accelerated: Spread

    @property
    def ratio(self) -> float:
        return self.stock.median / self.accelerated.median


def run_once(
    model: BarkModel,
    inputs: dict[str, Any],
    seed: int,
    on_stage: Callable[[str], None] | None = None,
    **options: Any,
) -> Run:
    """Generate once from a freshly seeded global generator."""
    from bark_accel.hf.configs import sample_rate
    from bark_accel.hf.offload import device_of
    from bark_accel.hf.stage_trace import trace_stages
    from bark_accel.ops.device import synchronize

    # Transformers changes some of its arguments in place.
    inputs = {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}
    torch.manual_seed(seed)
    device = device_of(model)
    with trace_stages(model, on_stage) as trace:
        synchronize(device)
        start = time.perf_counter()
        audio = model.generate(**inputs, **options)
        synchronize(device)
        total_s = time.perf_counter() - start
    audio_s = audio.shape[-1] / sample_rate(model)
    return Run(trace.seconds, total_s, trace.outputs, audio_s)


def run_pairs(
    stock: BarkModel,
    accelerated: BarkModel,
    inputs: dict[str, Any],
    *,
    repeats: int,
    seed: int = 0,
    on_run: Callable[[str, int], None] | None = None,
    **options: Any,
) -> Iterator[tuple[Run, Run]]:
    """Yield (stock, accelerated) runs, taken in turns so that a busy machine slows both; one seed a pair."""
    for repeat in range(repeats):
        pair = []
        for name, model in (("stock", stock), ("accelerated", accelerated)):
            if on_run is not None:
                on_run(name, repeat)
            pair.append(run_once(model, inputs, seed + repeat, **options))
        yield pair[0], pair[1]


def warm_up(model: BarkModel, inputs: dict[str, Any], seed: int = 0) -> None:
    """Generate a few tokens, so that no measured run pays for what happens once: loading, conversions, first calls."""
    run_once(model, {**inputs, "semantic_max_new_tokens": WARM_UP_TOKENS}, seed)


def summarise(pairs: Sequence[tuple[Run, Run]]) -> list[Comparison]:
    """One comparison a stage, and `total`."""

    def spreads(read: Callable[[Run], float]) -> tuple[Spread, Spread]:
        return spread_of([read(a) for a, _ in pairs]), spread_of([read(b) for _, b in pairs])

    rows = [Comparison(stage, *spreads(lambda run, s=stage: run.seconds[s])) for stage in STAGES]  # type: ignore[misc]
    return [*rows, Comparison("total", *spreads(lambda run: run.total_s))]


def spread_of(values: list[float]) -> Spread:
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return Spread(statistics.median(values), fifths[0], fifths[-1])


def token_differences(stock: Run, accelerated: Run) -> list[str]:
    """One line for each stage whose tokens are not equal."""
    lines = []
    for stage in TOKEN_STAGES:
        expected, got = stock.outputs[stage], accelerated.outputs[stage]
        if expected.shape != got.shape:
            lines.append(f"{stage}: stock has shape {list(expected.shape)}, accelerated {list(got.shape)}")
        elif not torch.equal(expected, got):
            different = (expected != got).nonzero()
            first = different[0].tolist()
            lines.append(f"{stage}: {len(different)} of {expected.numel()} tokens differ, first at {first}")
    return lines


@dataclass(frozen=True)
class Verdict:
    """A comparison with stock's tokens: a line for each stage that is wrong, or the ties that explain what differs."""

    wrong: list[str]
    ties: list[str]

    @property
    def summary(self) -> str:
        if not self.ties:
            return "All tokens are equal"
        return f"All tokens are equal but for {len(self.ties)} that rounding decides ({'; '.join(self.ties)})"


def judge_tokens(
    model: BarkModel, inputs: dict[str, Any], seed: int, stock: Run, accelerated: Run, **options: Any
) -> Verdict:
    """Compare two runs with these arguments of `run_once`; in float32, differences that come of ties are none.

    Parameters
    ----------
    model : BarkModel
        Either of the two.
    """
    from .ties import explaining_ties

    wrong = token_differences(stock, accelerated)
    if not wrong or model.dtype != torch.float32:
        return Verdict(wrong, [])
    ties = explaining_ties(
        model,
        lambda candidate: run_once(candidate, inputs, seed, **options),
        lambda run: not token_differences(run, accelerated),
    )
    return Verdict(wrong, []) if ties is None else Verdict([], list(map(str, ties)))


def waveform_difference(stock: Run, accelerated: Run) -> float:
    """Largest difference of two samples at the same time; infinite for different lengths."""
    expected, got = stock.outputs["codec"], accelerated.outputs["codec"]
    if expected.shape != got.shape:
        return float("inf")
    return float((expected.float() - got.float()).abs().max()) if expected.numel() else 0.0


def machine_facts(device: torch.device | None = None) -> dict[str, Any]:
    """Return the facts of the machine that a measurement depends on: CPU, cores, threads, system, any GPU.

    Of several GPUs, that of `device`, or else torch's current one.
    """
    facts: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if (quota := _cpus.cpu_quota()) is not None:
        facts["cpu quota"] = quota
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name(device if device is not None and device.type == "cuda" else None)
    elif torch.backends.mps.is_available():
        facts["gpu"] = f"{_cpu_model()} (mps)"
    return facts


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide speed and results, by name."""
    packages = ("transformers", "numpy")
    found = {package: metadata.version(package) for package in packages}
    # Its metadata does not say which build it is.
    own = {"bark_accel": bark_accel.__version__, "torch": torch.__version__}
    return {**own, **found, "python": platform.python_version()}


def commit() -> str | None:
    """The commit of the source tree this runs from, marked where files have changed; None outside of one.

    Where the tree travelled without its history, what the environment variable BARK_ACCEL_COMMIT says.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "csrc").is_dir():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return f"{head}{'+changes' if _git(root, 'status', '--porcelain') else ''}"
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("BARK_ACCEL_COMMIT")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
