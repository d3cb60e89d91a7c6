"""The compiled ops by name, and what each of them returns for tensors without data (its fake)."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _library, schemas

_fakes: dict[str, Callable[..., Tensor]] = {}
_kernels: dict[str, Callable[..., Tensor]] = {}
# functools.cache lets in two threads that come first together, and some versions of torch refuse a second fake.
_registering = threading.Lock()


@functools.cache
def op(name: str) -> Callable[..., Any]:
    """Return a compiled op, called as its schema in `schemas` says, keywords left out.

    It refuses inputs that need gradients with a `ValueError`. Raises `ImportError` without the library.
    """
    with _registering:
        library = _library.load()
        if name in _kernels:
            function = _kernels.pop(name)
            for device in ("CPU", "CUDA"):
                schemas.define().impl(name, function, device)
        if name in _fakes:
            torch.library.register_fake(f"bark_accel::{name}", _fakes.pop(name))
    packet, _, overload = name.partition(".")
    compiled = getattr(getattr(torch.ops.bark_accel, packet), overload or "default")

    def call(*arguments: Any) -> Tensor:
        if torch.is_grad_enabled():
            _require_no_grad(compiled, arguments)
        try:
            return compiled(*arguments)
        except RuntimeError as error:  # what torch 2.15 makes of every exception
            refusal = library.last_refusal()
            if refusal and refusal in str(error):
                raise ValueError(refusal) from None
            raise

    return call


def _require_no_grad(compiled: Any, arguments: tuple[Any, ...]) -> None:
    schema = compiled._schema
    for given, declared in zip(arguments, schema.arguments, strict=False):
        for tensor in given if isinstance(given, (list, tuple)) else [given]:
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                raise ValueError(
                    f"{schema.name.partition('::')[2]}: expected torch.no_grad() or inputs that need no gradient (the "
                    f"op has no backward), got {declared.name} with requires_grad=True"
                )


def fake(name: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Decorate the function that makes an empty result of the op; it is registered when the op is first used."""

    def keep(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        _fakes[name] = function
        return function

    return keep


def kernel(name: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Decorate an op's implementation in Python; it is registered when the op is first used."""

    def keep(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        _kernels[name] = function
        return function

    return keep


def require_one_device(name: str, *tensors: Tensor | None) -> None:
    devices = sorted({str(t.device) for t in tensors if t is not None})
    if len(devices) > 1:
        raise ValueError(f"{name}: expected all tensors on one device, got {' and '.join(devices)}")
