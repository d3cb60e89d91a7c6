"""Builds, checks and measures on a GPU, and is over in time whatever happens. Needs no make.

    python -m benchmarks gpu run      all of the following, in the order that loses least
    python -m benchmarks gpu build    the library with its CUDA kernels
    python -m benchmarks gpu test     the tests of tests/gpu
    python -m benchmarks gpu bench    the measurements
    python -m benchmarks gpu sanitize the kernels under compute-sanitizer
    python -m benchmarks gpu run --device cpu --prebuilt   a dry run: tiny models, every line

Writes DIRECTORY/cuda_DEVICE.json after every row, the log and the tests' outcomes beside it, and two plots at the end;
DIRECTORY is $OUT where that is set. The exit status is 0 if nothing failed; what failed, and what there was no time
for, is named in the JSON. Each table of each model is measured in a process of its own, so that a crash or a hang costs
what is left of that table.

Weights are random and of bark's real shapes; nothing is downloaded. The protocol of the generations is that of Hugging
Face's post "Optimizing a Text-To-Speech model using Transformers": 256 semantic tokens, batches of 1 and 8, after a
warm-up; the table `docs` is that of Transformers' documentation of Bark: 400 semantic tokens, batches up to 16.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu import limits
from benchmarks.gpu.plan import DRY, TABLES, Job, Plan, table_jobs
from benchmarks.gpu.report import Report, find_gpu
from benchmarks.gpu.stages import KERNEL_TESTS, OTHER_TESTS, Stages

COMMANDS = {
    "run": ("build", "kernel_tests", "smoke", "tables", "plots", "other_tests"),
    "build": ("build",),
    "test": ("kernel_tests", "other_tests"),
    "bench": ("smoke", "tables", "plots"),
    "sanitize": ("sanitize",),
}


def main(argv: Sequence[str] | None = None, jobs: list[Job] | None = None) -> int:
    """Run a command and return the exit status; `jobs` in place of those of the tables."""
    arguments = parse(argv)
    plan = Plan(arguments.device) if arguments.device.startswith("cuda") else DRY
    if arguments.samples is not None:
        plan = replace(plan, repeats=arguments.samples, stock_repeats=arguments.samples)
    gpu = find_gpu() if plan.on_gpu else {}
    path = arguments.directory.resolve() / f"{file_name(arguments, gpu.get('gpu', plan.device))}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    tee = log_to(path.with_suffix(".log"))
    report = Report(path, plan, gpu)
    stages = Stages(arguments, plan, report, table_jobs(plan, tuple(arguments.tables)) if jobs is None else jobs)
    end_in(arguments.seconds, report)
    try:
        for name in COMMANDS[arguments.command]:
            if not getattr(stages, name)():
                break
    finally:
        limits.end_all()
        status = tell(report, path)
        end_log(tee)
    return status


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--seconds", type=float, default=560, help="after which nothing runs any more (560)")
    parser.add_argument("--tests-seconds", type=float, default=90, help="kept for the tests after the tables (90)")
    default = Path(os.environ.get("OUT") or Path(__file__).parents[1] / "results")
    parser.add_argument("--directory", type=Path, default=default)
    parser.add_argument("--device", default=Plan.device, help="cpu: a dry run with tiny models")
    parser.add_argument("--prebuilt", action="store_true", help="use the library that is there; build if none loads")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at a time (one a core)")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES, help="in a file of their own")
    parser.add_argument("--samples", type=_positive, help="of each timed call, stock's too (4, stock's one)")
    parser.add_argument("--kernel-tests", nargs="+", default=KERNEL_TESTS, metavar="TEST", help="those that come first")
    parser.add_argument("--other-tests", nargs="+", default=OTHER_TESTS, metavar="TEST", help="those that come last")
    parser.add_argument("--sanitizer", default="compute-sanitizer")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def file_name(arguments: argparse.Namespace, device: str) -> str:
    """One name for each command and choice of tables, so that none overwrites what another measured."""
    parts = ["cuda" if arguments.device.startswith("cuda") else "dry", device]
    parts += [arguments.command] if arguments.command != "run" else []
    parts += arguments.tables if set(arguments.tables) != set(TABLES) else []
    return re.sub(r"[^a-z0-9_.-]+", "_", "_".join(parts).lower())


def log_to(path: Path) -> subprocess.Popen[bytes]:
    """Copy to a file, from here on, what this process and its children print."""
    tee = subprocess.Popen(["tee", "-i", str(path)], stdin=subprocess.PIPE, preexec_fn=os.setpgrp)
    assert tee.stdin is not None
    sys.stdout.flush()
    for number in (1, 2):
        os.dup2(tee.stdin.fileno(), number)
    tee.stdin.close()
    os.environ["PYTHONUNBUFFERED"] = "1"
    return tee


def end_log(tee: subprocess.Popen[bytes]) -> None:
    sys.stdout.flush()
    null = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(null, number)
    try:
        tee.wait(2)
    except subprocess.TimeoutExpired:  # something that cannot be killed still holds it
        tee.kill()


def end_in(seconds: float, report: Report) -> None:
    """Whatever waits for whatever: this process and its children are gone by then. SIGTERM ends the run in order."""

    def give_up(*_: Any) -> None:
        limits.end_all()
        report.fail("run", f"given up after {seconds:.0f} s")
        os._exit(124)

    def stop(*_: Any) -> None:
        report.fail("run", "told to stop")
        sys.exit(143)

    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.signal(signal.SIGTERM, stop)


def tell(report: Report, path: Path) -> int:
    content = report.content
    for late in content["left_out_for_lack_of_time"]:
        print(f"no time for {late}")
    for part in content["failed"]:
        print(f"FAILED: {part['what']}: {part['error']}")
    print(f"wrote {path}; {len(content['failed'])} failures")
    return 1 if content["failed"] else 0
