"""accelerate's hooks that move weights (`enable_cpu_offload`, `cpu_offload`, `disk_offload`, `dispatch_model`).

They move on `forward`, which our loops never call: the same hooks are asked here. Weights that stay on the CPU or the
disk are brought for as long as they are read; what was read stays valid, and is freed with its last reader.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def only_moves_weights(part: Any) -> bool:
    """Tell whether accelerate has hooked a module, and its hooks do nothing but move weights and inputs."""
    forward = vars(part).get("forward")
    if not isinstance(forward, functools.partial) or getattr(forward.func, "__module__", None) != "accelerate.hooks":
        return False
    own = getattr(part._old_forward, "__func__", None) is type(part).forward
    return own and {type(hook) for hook in _hooks(part)} <= {*_kinds().values()}


def is_offloaded(module: Any) -> bool:
    """Tell whether accelerate moves weights of a sub-model."""
    return any(only_moves_weights(part) for part in module.modules())


def summon(module: Any) -> None:
    """Move a sub-model to its device and the one before it off, where `enable_cpu_offload` would for its forward."""
    if only_moves_weights(module) and any(type(hook) is _kinds()["CpuOffload"] for hook in _hooks(module)):
        with torch.inference_mode(False), torch.no_grad():
            module._hf_hook.pre_forward(module)


@contextmanager
def weights_present(module: Any) -> Iterator[None]:
    """Have the weights of a sub-model where its parts compute, be they kept on the CPU or the disk otherwise."""
    kept = [part for part in module.modules() if _keeps_elsewhere(part)]
    brought = []
    try:
        for part in kept:
            part._hf_hook.pre_forward(part)
            brought.append(part)
        yield
    finally:
        for part in brought:
            part._hf_hook.post_forward(part, None)


def device_of(module: Any) -> torch.device:
    """The device on which a module computes, wherever its weights are now."""
    hooks = [hook for part in module.modules() if only_moves_weights(part) for hook in _hooks(part)]
    named = (hook.execution_device for hook in hooks if hook.execution_device is not None)
    return torch.device(next(named, next(module.parameters()).device))


def has_weights(module: Any) -> bool:
    """Tell whether no part lacks its weights, other than those that accelerate keeps elsewhere."""
    own = (p for part in module.modules() if not _keeps_elsewhere(part) for p in part.parameters(recurse=False))
    return not any(parameter.is_meta for parameter in own)


def _keeps_elsewhere(part: Any) -> bool:
    return only_moves_weights(part) and any(getattr(hook, "offload", False) is True for hook in _hooks(part))


def _hooks(part: Any) -> list[Any]:
    hook = part._hf_hook
    return list(hook.hooks) if type(hook).__name__ == "SequentialHook" else [hook]


def _kinds() -> dict[str, type]:
    hooks = sys.modules["accelerate.hooks"]
    return {name: getattr(hooks, name) for name in ("AlignDevicesHook", "CpuOffload")}
