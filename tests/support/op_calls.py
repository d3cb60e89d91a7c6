"""Ops of a module, called by the loose arguments of their schemas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bark_accel.ops.interface import StepCache, StepWeights


def call(module: Any, name: str, *arguments: Any) -> Tensor:
    """An op of a module, by the loose arguments of its schema."""
    return getattr(module, name)(*bundled(name, arguments))


def bundled(name: str, arguments: Sequence[Any]) -> Sequence[Any]:
    """The arguments of a schema as the function of that name takes them; a copy of what it would change."""
    if name == "lstm_layer":
        return (*arguments[:2], *(state.clone() for state in arguments[2:]))
    if name != "decode_step":
        return arguments
    return arguments[0], StepWeights(*arguments[1:8]), StepCache(*arguments[8:])
