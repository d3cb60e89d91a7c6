"""Resident anonymous memory of a process that generates: stock and every mode, each in a process of its own.

python -m benchmarks memory --json benchmarks/results/cpu_memory.json
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bark_accel.bench.measure import commit, machine_facts, versions

SHAPES = ("bark-small", "bark")
# As arguments of accelerate_bark; None: stock.
MODES: dict[str, dict[str, Any] | None] = {
    "stock": None,
    "float32": {},
    "float32, no drafts": {"speculate": False},
    "float16, originals kept": {"weights": "float16"},
    "float16": {"weights": "float16", "release_originals": True},
    "int8, originals kept": {"weights": "int8"},
    "int8": {"weights": "int8", "release_originals": True},
    "model.half()": {},
}


@dataclass
class Peak:
    mib: float = 0.0


def resident_mib() -> float:
    # Without the pages of the checkpoint, which stay mapped.
    fields = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in fields if line.startswith("RssAnon")) / 1024


@contextmanager
def watched() -> Iterator[Peak]:
    """The most that is resident meanwhile, looked at every 5 ms."""
    peak, done = Peak(), threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak.mib = max(peak.mib, resident_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def measure(mode: str, checkpoint: str, seconds: float) -> dict[str, float]:
    """Load, accelerate, generate; MiB beyond what the process had before it loaded the model."""
    import torch
    from transformers import BarkModel

    from bark_accel import accelerate_bark
    from bark_accel.bench.models import fake_inputs, quiet_transformers, semantic_tokens

    quiet_transformers()
    before = resident_mib()
    model = BarkModel.from_pretrained(checkpoint).eval()
    # from_pretrained maps the file; a weight that is not mapped counts from the start.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    if mode == "model.half()":
        model.half()
    options = MODES[mode]
    if options is not None:
        accelerate_bark(model, **options)
    tidy()
    loaded = resident_mib()
    torch.manual_seed(0)
    with watched() as peak:
        model.generate(**fake_inputs(model, "Memory"), semantic_max_new_tokens=semantic_tokens(model, seconds))
    tidy()
    return {
        "after_loading_mib": loaded - before,
        "while_generating_mib": peak.mib - before,
        "afterwards_mib": resident_mib() - before,
    }


def tidy() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", help="bark-small or bark; may be repeated. Not given: both")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mode:
        print(json.dumps(measure(options.mode, options.checkpoint, options.seconds)))
        return
    record: dict[str, Any] = {"machine": machine_facts(), "versions": versions(), "commit": commit()}
    record["seconds"] = options.seconds
    record["shapes"] = {shape: compare(shape, options.seconds) for shape in options.shape or SHAPES}
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def compare(shape: str, seconds: float) -> dict[str, dict[str, float]]:
    """Every mode of a model of random weights."""
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(shape, folder)
        results = {mode: run(mode, folder, seconds) for mode in MODES}
    stock = results["stock"]
    for mode, result in results.items():
        result["of_stock_while_generating"] = result["while_generating_mib"] / stock["while_generating_mib"]
        print(f"{shape:10} {mode:24} " + "  ".join(f"{key} {value:.2f}" for key, value in result.items()), flush=True)
    return results


def run(mode: str, checkpoint: str, seconds: float) -> dict[str, float]:
    options = ["--mode", mode, "--checkpoint", checkpoint, "--seconds", str(seconds)]
    command = [sys.executable, "-m", "benchmarks", "memory", *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    return json.loads(done.stdout.splitlines()[-1])


def save_checkpoint(shape: str, folder: str) -> None:
    from bark_accel.bench.models import random_bark

    random_bark(shape).save_pretrained(folder)
    # Or the memory of this model would be missing to those that are measured.
    tidy()
