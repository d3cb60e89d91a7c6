"""The `flash-attn` package in place of torch's own attention, over blocks of tokens in 16 bits on an NVIDIA GPU."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

ATTENTIONS = ("sdpa", "flash_attn")


def check_attention(attention: str, device: torch.device, exact: bool) -> None:
    """Raise unless `attention` is known, and installed and of use where it is not torch's own.

    Parameters
    ----------
    exact : bool
        Whether products are float32, which flash-attn does not have.

    Raises
    ------
    ValueError
        Unknown name, or `"flash_attn"` off a GPU or for float32 products.
    ImportError
        `flash_attn` is not installed.
    """
    if attention not in ATTENTIONS:
        raise ValueError(f"attention: expected one of {', '.join(map(repr, ATTENTIONS))}, got {attention!r}")
    if attention == "sdpa":
        return
    if device.type != "cuda" or exact:
        got = f"one on {device}" + (" with float32 products" if exact else "")
        raise ValueError(
            f"attention='flash_attn': expected a model on an NVIDIA GPU with weights of 16 bits or fewer, got {got}"
        )
    if find_spec("flash_attn") is None:
        raise ImportError("attention='flash_attn': the package flash-attn is not installed (`pip install flash-attn`)")


def int16_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
    """Compute :func:`bark_accel.ops.tensor_cores.int16_attention`. Its causal mask, too, ends at the last key."""
    dtype = torch.float16 if key.dtype == torch.float32 else key.dtype
    query, key, value = (t.to(dtype) for t in (query, key.transpose(1, 2), value.transpose(1, 2)))
    return import_module("flash_attn").flash_attn_func(query, key, value, causal=causal).flatten(2)
