"""Choice of the decode step on a kind of GPU: one CUDA kernel for many tokens, graphs of our kernels, or of torch's.

Which is faster depends on the GPU and on the model's shape. Our kernels give the same bits in both ways; torch's own
operations take sums in another order, so that a token may differ where two are a rounding error apart. Made by
``BARK_ACCEL_CUDA_STEP=kernels|persistent|torch``, else in a table of GPUs that were measured, else "kernels". With
``BARK_ACCEL_CUDA_STEP=trial`` the first generation of a shape measures all three, the one kernel once it was found to
draw the tokens of the others, and the answer stays in ``$XDG_CACHE_HOME/bark_accel`` (``~/.cache/bark_accel``), as that
of `float32_choice`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bark_accel._version import __version__

from . import kept_trials
from .interface import StepCache, StepWeights

VARIABLE = "BARK_ACCEL_CUDA_STEP"
STEPS = ("kernels", "persistent", "torch")
TRIAL = "trial"
# By `key_of`. No GPU has been measured yet.
_MEASURED: dict[str, str] = {}

_made: dict[str, StepChoice] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class StepChoice:
    """`step`: one of `STEPS`; `source`: who says so."""

    step: str
    source: str

    def __str__(self) -> str:
        return f"{self.step} ({self.source})"


def wanted() -> str:
    """Return what the environment asks for, one of `STEPS` or "trial"; empty where it asks for nothing.

    Raises
    ------
    ValueError
        It is none of these.
    """
    name = os.environ.get(VARIABLE) or ""
    if name and name not in (*STEPS, TRIAL):
        raise ValueError(f"{VARIABLE}: expected {', '.join(STEPS)} or {TRIAL}, got {name!r}")
    return name


def key_of(weights: StepWeights, cache: StepCache) -> str:
    """Name what a choice holds for: a GPU, a shape, its dtype and its rows, and a version of torch."""
    layers, rows = cache.keys.shape[:2]
    dtype = str(weights.head.dtype).removeprefix("torch.")
    shape = f"{layers} layers of {weights.positions.shape[1]} in {dtype}, {rows} rows"
    return f"{gpu_model(cache.keys.device)}, {shape}, torch {'.'.join(torch.__version__.split('.')[:2])}"


def gpu_model(device: torch.device) -> str:
    """Return the name of a GPU, as its driver has it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def choice(key: str) -> StepChoice | None:
    """Return the choice for a key; None where a trial has to make it (`keep`)."""
    by_user = wanted()
    if by_user in STEPS:
        return StepChoice(by_user, VARIABLE)
    if by_user != TRIAL and key not in _MEASURED:
        return StepChoice("kernels", "not measured on this GPU")
    with _lock:
        if key not in _made:
            found = StepChoice(_MEASURED[key], "measured") if key in _MEASURED else _read(key)
            if found is None:
                return None
            _made[key] = found
        return _made[key]


def keep(key: str, step: str) -> StepChoice:
    """Store a trial's answer, and return what holds: another process may have been first."""
    with _lock:
        _made[key] = _kept(key, step)
        return _made[key]


def made() -> dict[str, StepChoice]:
    """Return what the table and trials have chosen in this process so far, by key."""
    with _lock:
        return dict(_made)


def of_trial(seconds: dict[str, Callable[[], float]], rounds: int = 3) -> str:
    """Return the step that takes the least time; each of `seconds` runs once and says how long that took."""
    times = {name: min(run() for _ in range(rounds)) for name, run in seconds.items()}
    return min(times, key=lambda name: times[name])


def _versioned(key: str) -> str:
    return f"{key}, bark_accel {__version__}"


def _read(key: str) -> StepChoice | None:
    try:
        path = kept_trials.place("cuda-step", _versioned(key))
    except RuntimeError:  # nobody's home
        return None
    step = (kept_trials.read(path, _versioned(key)) or {}).get("step")
    return StepChoice(step, f"trial, kept in {path}") if step in STEPS else None


def _kept(key: str, step: str) -> StepChoice:
    try:
        path = kept_trials.place("cuda-step", _versioned(key))
        kept_trials.keep(path, _versioned(key), {"step": step}, lambda: _read(key) is not None)
    except (RuntimeError, OSError):
        # Each of them gives a stage's tokens: an answer that is not kept does no harm.
        return StepChoice(step, "trial of this process, no folder keeps it")
    return _read(key) or StepChoice(step, "trial")
