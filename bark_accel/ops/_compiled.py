"""The compiled ops by name, and what each of them returns for tensors without data (its fake)."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _library

_fakes: dict[str, Callable[..., Tensor]] = {}
# functools.cache lets in two threads that come first together, and some versions of torch refuse a second fake.
_registering = threading.Lock()


@functools.cache
def op(name: str) -> Callable[..., Any]:
    """Return a compiled op, called as its schema in csrc/ops.cpp says. Raises `ImportError` without the library."""
    with _registering:
        _library.load()
        if name in _fakes:
            torch.library.register_fake(f"bark_accel::{name}", _fakes.pop(name))
    return getattr(torch.ops.bark_accel, name).default


def fake(name: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Decorate the function that makes an empty result of the op; it is registered when the op is first used."""

    def keep(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        _fakes[name] = function
        return function

    return keep


def require_one_device(name: str, *tensors: Tensor | None) -> None:
    devices = sorted({str(t.device) for t in tensors if t is not None})
    if len(devices) > 1:
        raise ValueError(f"{name}: expected all tensors on one device, got {' and '.join(devices)}")
