"""Options of `say` and `read`, checked before a model is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bark_accel.approximations import EXACT, Approximations
from bark_accel.streaming.streamer import POLICIES

from .console import UserError
from .outputs import SOUND_SUFFIXES, STDOUT, check_file, check_folder

DTYPES = ("float32", "float16", "bfloat16")
WEIGHTS = ("same", "float16", "bfloat16", "int8", "w8a8")
KV_CACHE_DTYPES = ("auto", "int8")


@dataclass(frozen=True)
class ModelChoice:
    """A checkpoint (None: the small Bark), where it runs, its own dtype (None: as it is), and what is approximate."""

    name: str | None
    device: str | None = None
    dtype: str | None = None
    approximations: Approximations = EXACT

    def check(self) -> None:
        """Raise `UserError` for a value that no model could have."""
        _check_name("--weights", self.approximations.weights, WEIGHTS)
        _check_name("--kv-cache-dtype", self.approximations.kv_cache_dtype, KV_CACHE_DTYPES)
        if self.dtype is not None:
            _check_name("--dtype", self.dtype, DTYPES)
        if self.device is not None:
            _check_device(self.device)


@dataclass(frozen=True)
class Request:
    """Request for speech: the voice, the longest duration (seconds; None: the model's own limit), the file to write."""

    out: Path
    model: ModelChoice
    voice: str | None = None
    seed: int = 0
    max_seconds: float | None = None
    stream: bool = False
    policy: str | None = None
    save_voice: Path | None = None

    def check(self) -> None:
        """Raise `UserError` for options that do not fit together, or an output that cannot be written."""
        if not self.stream and self.policy is not None:
            raise UserError(f"--policy {self.policy}: expected --stream with it")
        if self.policy is not None:
            _check_name("--policy", self.policy, POLICIES)
        if self.save_voice is not None and self.policy == "preview":
            raise UserError("--save-voice: expected another --policy than preview with it, which makes no fine codes")
        if self.out == STDOUT and not self.stream:
            raise UserError("--out -: expected --stream with it; without, name a .wav file")
        if self.out != STDOUT:
            check_file("--out", self.out, SOUND_SUFFIXES)
        if self.save_voice is not None:
            check_file("--save-voice", self.save_voice, (".npz",))
        self.model.check()


@dataclass(frozen=True)
class ReadOptions:
    """Arguments of `long_form`; None: its own default."""

    carry_voice: bool | None = None
    work_dir: Path | None = None
    batch_size: int | None = None
    language: str | None = None
    characters_per_second: float | None = None

    def given(self) -> dict[str, Any]:
        """Return the options that are set; the others are left to `long_form`."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def check(self) -> None:
        """Raise `UserError` for a work folder that cannot be written."""
        if self.work_dir is not None:
            check_folder("--work-dir", self.work_dir)


def _check_name(option: str, value: str, names: tuple[str, ...]) -> None:
    if value not in names:
        raise UserError(f"{option}: expected one of {', '.join(names)}, got {value}")


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, dtype=torch.float32, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # what torch raises depends on the device
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"--device: expected cpu, cuda or another one of this machine, got {device} ({reason})"
        ) from error
