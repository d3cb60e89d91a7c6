"""Choice of who computes float32 products, attention and convolutions on this CPU: torch, oneDNN or our kernels.

None is the fastest everywhere: MKL, which torch calls, takes a slower path on AMD. A choice changes the order of a sum,
so for a CPU, instruction set, version of torch and number of threads it is made once: in a table of measured CPUs, else
by a trial of some milliseconds, kept in ``$XDG_CACHE_HOME/bark_accel`` (``~/.cache/bark_accel``) and used from then on.
``BARK_ACCEL_FLOAT32=torch|onednn|native`` makes it instead.
"""

from __future__ import annotations

import functools
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import _library, kept_trials
from .float32_candidates import ATTENTION, CONVOLUTIONS, PRODUCTS

VARIABLE = "BARK_ACCEL_FLOAT32"
_ROUNDS = 3
# The first of these that needs at most so many times the shortest time is taken: torch's sums are stock's own, and ours
# depend neither on threads nor on other rows.
_ORDER = ("torch", "native", "onednn")
_CLOSE = 1.1


@dataclass(frozen=True)
class Float32Choice:
    """The name of who computes what: "torch", "native" (our kernels) or, of `products` alone, "onednn".

    `convolutions` are the codec's, with its LSTM; `source`: who says so.
    """

    products: str
    attention: str
    convolutions: str
    source: str

    def __str__(self) -> str:
        who = f"products {self.products}, attention {self.attention}, convolutions {self.convolutions}"
        return f"{who} ({self.source})"


_FORCED = {
    name: Float32Choice(name, other, other, VARIABLE)
    for name, other in (("torch", "torch"), ("native", "native"), ("onednn", "native"))
}

# Products, attention, convolutions. Zen 5 with two cores, torch 2.13: benchmarks/ops/bench_ops.py.
_ZEN_5 = "AuthenticAMD family 26 model 2"
_MEASURED = {
    f"{_ZEN_5}, {isa}, torch 2.13, {threads} threads": answer
    for threads in (1, 2)
    for isa, answer in {
        "generic": ("onednn", "torch", "torch"),
        "avx2": ("onednn", "native", "native"),
        "avx512": ("native", "native", "native"),
        "avx512_vnni": ("native", "native", "native"),
    }.items()
}

# A trial that cannot be kept might end otherwise in the next process.
_UNKEPT = Float32Choice("torch", "torch", "torch", "no folder keeps a trial")

_lock = threading.Lock()


def forced() -> Float32Choice | None:
    """The choice that the environment makes; raises `ValueError` on a name that is not one."""
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    if name not in _FORCED:
        raise ValueError(f"{VARIABLE}: expected one of {', '.join(_FORCED)}, got {name!r}")
    return _FORCED[name]


def choice() -> Float32Choice:
    """Return the choice for this process's CPU, instruction set and number of threads."""
    by_user = forced()
    if by_user is not None:
        return by_user
    # A trial by two threads at once might give two answers.
    with _lock:
        return _decided(_library.load().isa(), torch.get_num_threads())


@functools.cache
def _decided(isa: str, threads: int) -> Float32Choice:
    version = ".".join(torch.__version__.split(".")[:2])
    key = f"{cpu_model()}, {isa}, torch {version}, {threads} threads"
    if key in _MEASURED:
        return Float32Choice(*_MEASURED[key], "measured")
    try:
        path = kept_trials.place("float32", key)
    except RuntimeError:  # nobody's home
        return _UNKEPT
    kept = _read(path, key)
    if kept is not None:
        return kept
    try:
        return _keep(path, key, Float32Choice(*_trial(), "trial"))
    except OSError:
        return _UNKEPT


@functools.cache
def cpu_model() -> str:
    """Vendor, family and model of this CPU, as far as the system says."""
    facts: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    if "vendor_id" in facts:
        return f"{facts['vendor_id']} family {facts.get('cpu family')} model {facts.get('model')}"
    return platform.processor() or platform.machine()


def _read(path: Path, key: str) -> Float32Choice | None:
    kept = kept_trials.read(path, key) or {}
    products, attention, convolutions = (kept.get(name, "") for name in ("products", "attention", "convolutions"))
    known = products in _ORDER and {attention, convolutions} <= {"torch", "native"}
    return Float32Choice(products, attention, convolutions, f"trial, kept in {path}") if known else None


def _keep(path: Path, key: str, tried: Float32Choice) -> Float32Choice:
    """Store a trial's result and return the file's."""
    answer = {"products": tried.products, "attention": tried.attention, "convolutions": tried.convolutions}
    kept_trials.keep(path, key, answer, lambda: _read(path, key) is not None)
    return _read(path, key) or tried


def _trial() -> tuple[str, str, str]:
    """The fastest for products [256, 768] x [768, 768], attention of 256 tokens in 12 heads of 64, and convolutions.

    Those are of 2560 frames of 128 channels, 3 taps.
    """
    with torch.inference_mode(False), torch.no_grad():
        # No random numbers: the generator is the caller's.
        input = torch.full((256, 768), 0.5, dtype=torch.float32, device="cpu")
        weight = torch.full((768, 768), 0.25, dtype=torch.float32, device="cpu")
        heads = torch.full((1, 256, 3, 12, 64), 0.5, dtype=torch.float32, device="cpu")
        query, key, value = heads[:, :, 0], heads[:, :, 1].transpose(1, 2), heads[:, :, 2].transpose(1, 2)
        sound = torch.full((1, 2560, 128), 0.5, dtype=torch.float32, device="cpu")
        taps = torch.full((3, 128, 64), 0.25, dtype=torch.float32, device="cpu")
        return (
            _fastest(PRODUCTS, input, weight),
            _fastest(ATTENTION, query, key, value, True),
            _fastest(CONVOLUTIONS, sound, sound[:, :2], taps, None, None, 1, True),
        )


def _fastest(candidates: Mapping[str, Callable[..., Any]], *arguments: Any) -> str:
    times = {name: [_seconds(run, arguments)] for name, run in candidates.items()}
    for _ in range(_ROUNDS):
        for name, run in candidates.items():
            times[name].append(_seconds(run, arguments))
    shortest = {name: min(its) for name, its in times.items()}
    limit = _CLOSE * min(shortest.values())
    return next(name for name in _ORDER if shortest.get(name, float("inf")) <= limit)


def _seconds(run: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    start = time.perf_counter()
    try:
        run(*arguments)
    except (RuntimeError, AttributeError, NotImplementedError):  # this torch has no such product
        return float("inf")
    return time.perf_counter() - start
