"""Which implementation of the ops a generation uses."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Protocol, cast

import torch
from torch import Tensor

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
        *,
        first_id: int,
        allowed_begin: int,
        allowed_end: int,
        eos_id: int = -1,
        min_eos_p: float = 0.0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        renormalize: bool = True,
    ) -> Tensor: ...

    def fused_multinomial(
        self,
        logits: Tensor,
        generator: torch.Generator | None,
        vocab_size: int,
        *,
        first_id: int,
        allowed_begin: int,
        allowed_end: int,
        eos_id: int = -1,
        min_eos_p: float = 0.0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
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
    """Whether the compiled ops serve this device: a CPU, or an NVIDIA GPU that the library was built for."""
    if backend == "torch":
        return False
    return device.type == "cpu" or (device.type == "cuda" and cuda_archs() is not None and _is_recent(device))


def _is_recent(gpu: torch.device) -> bool:
    return torch.cuda.get_device_capability(gpu) >= FIRST_CAPABILITY


def check_backend(backend: str, device: torch.device) -> None:
    """Raise unless `backend` is known, its library is present, and `device` is one it can serve.

    Raises
    ------
    ValueError
        Unknown name, or `"native"` for a device without compiled ops.
    ImportError
        The compiled library is needed and missing, or was built for another torch.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    if backend == "native" and not runs_natively(backend, device):
        served = "the CPU"
        if device.type == "cuda":
            served += f", or a library built with CUDA and a GPU of compute capability {FIRST_CAPABILITY} or later"
        raise ValueError(f"backend='native': expected a model on {served}, got {device}; use 'auto' or 'torch'")
    if runs_natively(backend, device):
        from ._library import load

        load()


def get_ops(backend: str, device: torch.device, attention: str = "sdpa") -> Ops:
    """The ops for a device; `attention`, one of `flash_attention.ATTENTIONS`, is for GPUs."""
    ops = _op_module(backend, device)
    if attention == "sdpa" or device.type != "cuda":
        return ops
    from . import flash_attention

    return cast(Ops, SimpleNamespace(**{**vars(ops), "int16_attention": flash_attention.int16_attention}))


def _op_module(backend: str, device: torch.device) -> Ops:
    if not runs_natively(backend, device):
        from . import reference as torch_ops

        return torch_ops
    if device.type == "cuda":
        from . import cuda as cuda_ops

        return cuda_ops
    from . import native as ops

    return ops
