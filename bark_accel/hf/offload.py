"""Reads accelerate's hooks that move weights: `enable_cpu_offload`, `cpu_offload`, `disk_offload`, `dispatch_model`."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch

from .parts import parameters_of, parts_of


def only_moves_weights(part: Any) -> bool:
    """Tell whether accelerate has hooked a module, and its hooks do nothing but move weights and inputs."""
    forward = vars(part).get("forward")
    if not isinstance(forward, functools.partial) or getattr(forward.func, "__module__", None) != "accelerate.hooks":
        return False
    own = getattr(part._old_forward, "__func__", None) is type(part).forward
    return own and {type(hook) for hook in hooks_of(part)} <= {*hook_kinds().values()}


def is_offloaded(module: Any) -> bool:
    """Tell whether accelerate moves weights of a sub-model."""
    return any(only_moves_weights(part) for part in parts_of(module))


def takes_turns(module: Any) -> bool:
    """Tell whether a sub-model is on its device only until another one's turn, as `enable_cpu_offload` has it."""
    return only_moves_weights(module) and any(type(hook) is hook_kinds()["CpuOffload"] for hook in hooks_of(module))


def device_of(module: Any) -> torch.device:
    """The device on which a module computes, wherever its weights are now."""
    hooks = [hook for part in parts_of(module) if only_moves_weights(part) for hook in hooks_of(part)]
    named = (hook.execution_device for hook in hooks if hook.execution_device is not None)
    return torch.device(next(named, next(module.parameters()).device))


def has_weights(module: Any) -> bool:
    """Tell whether no part lacks its weights, other than those that accelerate keeps elsewhere."""
    meta = any(parameter.is_meta for parameter in parameters_of(module))
    return not meta or all(keeps_elsewhere(part) for part in parts_of(module) if _is_meta(part))


def _is_meta(part: Any) -> bool:
    return any(parameter.is_meta for parameter in part.parameters(recurse=False))


def keeps_elsewhere(part: Any) -> bool:
    """Tell whether accelerate keeps the weights of one module on the CPU or the disk while it is not used."""
    return only_moves_weights(part) and any(getattr(hook, "offload", False) is True for hook in hooks_of(part))


def hooks_of(part: Any) -> list[Any]:
    """accelerate's hooks of one module."""
    hook = part._hf_hook
    return list(hook.hooks) if type(hook).__name__ == "SequentialHook" else [hook]


def hook_kinds() -> dict[str, type]:
    """accelerate's classes of hooks that only move, by name; raises `KeyError` where it was not imported."""
    hooks = sys.modules["accelerate.hooks"]
    return {name: getattr(hooks, name) for name in ("AlignDevicesHook", "CpuOffload")}
