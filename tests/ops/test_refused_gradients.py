"""Ops have no gradients: parameters are refused in grad mode, and taken without it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bark_accel.ops import native as ops
from bark_accel.ops import reference as torch_ops

from .valid_arguments import NEEDS_GRAD, VALID, run

# Not of a module: gradients asked for them are not refused.
NEVER_PARAMETERS = {("fused_sample", "noise"), ("decode_step", "head_scales")}


def as_parameters(value: Any) -> Any:
    """The same with gradients asked for, in lists too."""
    if isinstance(value, list):
        return [as_parameters(entry) for entry in value]
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.detach().requires_grad_() if floating else value


@pytest.mark.parametrize("backend", [ops, torch_ops], ids=["native", "torch"])
@pytest.mark.parametrize(
    "op, name", [(op, name) for op in VALID for name in VALID[op] if (op, name) not in NEVER_PARAMETERS]
)
def test_parameters_are_accepted_without_grad_mode(backend: Any, op: str, name: str) -> None:
    """They are refused with it, one by one, and give the same without."""
    results = []
    for change in (as_parameters, lambda value: value):
        torch.manual_seed(0)
        arguments = {key: make() for key, make in VALID[op].items()}
        arguments[name] = change(arguments[name])
        if any(tensor.requires_grad for tensor in tensors_of(arguments[name])):
            with torch.enable_grad(), pytest.raises(ValueError, match=NEEDS_GRAD):
                run(backend, op, arguments)
        results.append(run(backend, op, arguments))
    assert torch.equal(*results) and not results[0].requires_grad


def tensors_of(value: Any) -> list[torch.Tensor]:
    return [entry for entry in (value if isinstance(value, list) else [value]) if isinstance(entry, torch.Tensor)]
