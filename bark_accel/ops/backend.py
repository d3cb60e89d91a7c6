"""Which implementation of the ops a generation uses."""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from . import device_check, reference
from ._library import cuda_archs
from .interface import CodecOps, Ops

BACKENDS = ("auto", "native", "torch")
TORCH_CODEC = CodecOps(reference.float32_conv, reference.float32_linear)


def runs_natively(backend: str, device: torch.device) -> bool:
    """Tell whether the compiled ops are used on this device: it is one of theirs, and they equal plain torch there."""
    return backend != "torch" and is_served(device) and native_fault(device) is None


def is_served(device: torch.device) -> bool:
    """Tell whether the compiled ops are made for this device: a CPU, or a GPU that the library was built for."""
    return device.type == "cpu" or (device.type == "cuda" and cuda_archs() is not None and _is_recent(device))


def native_fault(device: torch.device) -> str | None:
    """Say what is wrong with the compiled ops on a device that they are made for; the first call there compares them.

    None where they equal plain torch, and on CPUs, on which they are tested.
    """
    if _is_tested(device):
        return None
    return device_check.fault(_compiled_ops(device), reference, device)


def _is_tested(device: torch.device) -> bool:
    return device.type == "cpu"


def _is_recent(gpu: torch.device) -> bool:
    return torch.cuda.get_device_capability(gpu) >= first_capability()


def first_capability() -> tuple[int, int]:
    """Return that of the oldest code in the library; later ones compile what they lack from PTX."""
    codes = re.findall(r"sm_(\d+)(\d)", cuda_archs() or "")
    return min((int(major), int(minor)) for major, minor in codes)


def check_backend(backend: str, device: torch.device) -> None:
    """Raise unless `backend` is known, its library is present, and `device` is one it can serve.

    Raises
    ------
    ValueError
        Unknown name, `"native"` for a device without compiled ops, or an unknown name in `BARK_ACCEL_FLOAT32`.
    RuntimeError
        `"native"` for a device on which the compiled ops differ from plain torch.
    ImportError
        The compiled library is needed and missing, or was built for another torch.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    if backend == "native":
        _require_native(device)
    if runs_natively(backend, device):
        from ._library import load

        load()
    if runs_natively(backend, device) and device.type == "cpu":
        from .float32_choice import forced

        forced()


def _require_native(device: torch.device) -> None:
    if not is_served(device):
        served = "the CPU"
        if device.type == "cuda":
            oldest = first_capability() if cuda_archs() else (7, 5)
            served += f", or a library built with CUDA and a GPU of compute capability {oldest} or later"
        raise ValueError(f"backend='native': expected a model on {served}, got {device}; use 'auto' or 'torch'")
    fault = native_fault(device)
    if fault is not None:
        raise RuntimeError(
            f"backend='native': expected compiled ops that equal plain torch on {device}, got {fault}; "
            "use 'auto' or 'torch', and please report this"
        )


def get_ops(backend: str, device: torch.device, attention: str = "sdpa") -> Ops:
    """Choose the ops for a device; `attention`, one of `flash_attention.ATTENTIONS`, is for GPUs.

    Raises as `check_backend` does where `"native"` cannot be had.
    """
    if backend == "native":
        _require_native(device)
    ops = _compiled_ops(device) if runs_natively(backend, device) else Ops.of(reference)
    if attention == "sdpa" or device.type != "cuda":
        return ops
    from . import flash_attention

    return replace(ops, int16_attention=flash_attention.int16_attention)


def _compiled_ops(device: torch.device) -> Ops:
    from . import cpu, cuda

    return cuda.OPS if device.type == "cuda" else cpu.OPS


def get_codec_ops(backend: str, device: torch.device) -> CodecOps:
    """Choose what EnCodec's decoder runs on: on a CPU the compiled ops, where :mod:`float32_choice` finds them faster.

    Raises as `check_backend` does where `"native"` cannot be had.
    """
    if backend == "native":
        _require_native(device)
    if device.type != "cpu" or not runs_natively(backend, device):
        return TORCH_CODEC
    from . import cpu

    return cpu.codec_ops() or TORCH_CODEC
