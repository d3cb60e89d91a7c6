"""Which implementation of the ops a generation uses."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Protocol, cast

import torch
from torch import Tensor

from . import device_check
from ._library import cuda_archs

BACKENDS = ("auto", "native", "torch")
# Of GPUs: sm_80 is the oldest code in the library (setup.py); later ones compile what they lack from PTX.
FIRST_CAPABILITY = (8, 0)


class Ops(Protocol):
    """The ops that a backend module provides; see `bark_accel.ops.native` for shapes and errors."""

    def fused_sample(
        self,
        logits: Tensor,
        noise: Tensor | None,
        first_id: int,
        allowed: Tensor,
        min_eos_p: Tensor | None = None,
        temperature: Tensor | None = None,
        top_k: Tensor | None = None,
        top_p: Tensor | None = None,
        renormalize: bool = True,
    ) -> Tensor: ...

    def fused_multinomial(
        self,
        logits: Tensor,
        generator: torch.Generator | None,
        vocab_size: int,
        first_id: int,
        allowed: Tensor,
        min_eos_p: Tensor | None = None,
        temperature: Tensor | None = None,
        top_k: Tensor | None = None,
        top_p: Tensor | None = None,
        renormalize: bool = True,
    ) -> Tensor: ...

    def codebook_embedding_sum(self, codes: Tensor, tables: Sequence[Tensor], positions: Tensor) -> Tensor: ...

    def static_cache_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        length: Tensor,
    ) -> Tensor: ...

    def decode_step(
        self,
        ids: Tensor,
        token_table: Tensor,
        positions: Tensor,
        weights: Sequence[Tensor | None],
        eps: Sequence[float],
        head: Tensor,
        head_scales: Tensor | None,
        num_heads: int,
        key_cache: Tensor,
        value_cache: Tensor,
        length: Tensor,
    ) -> Tensor: ...

    def float32_linear(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        gelu: bool = False,
    ) -> Tensor: ...

    def float32_attention(self, query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor: ...

    def int16_linear(
        self,
        input: Tensor,
        weight: Tensor,
        scales: Tensor | None = None,
        bias: Tensor | None = None,
        gelu: bool = False,
    ) -> Tensor: ...

    def int16_attention(self, query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor: ...


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
    from . import reference as torch_ops

    return device_check.fault(_compiled_ops(device), torch_ops, device)


def _is_tested(device: torch.device) -> bool:
    return device.type == "cpu"


def _is_recent(gpu: torch.device) -> bool:
    return torch.cuda.get_device_capability(gpu) >= FIRST_CAPABILITY


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
            served += f", or a library built with CUDA and a GPU of compute capability {FIRST_CAPABILITY} or later"
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
    ops = _op_module(backend, device)
    if attention == "sdpa" or device.type != "cuda":
        return ops
    from . import flash_attention

    return cast(Ops, SimpleNamespace(**{**vars(ops), "int16_attention": flash_attention.int16_attention}))


def _op_module(backend: str, device: torch.device) -> Ops:
    if runs_natively(backend, device):
        return _compiled_ops(device)
    from . import reference as torch_ops

    return torch_ops


def _compiled_ops(device: torch.device) -> Ops:
    if device.type == "cuda":
        from . import cuda as cuda_ops

        return cuda_ops
    from . import cpu as cpu_ops

    return cpu_ops
