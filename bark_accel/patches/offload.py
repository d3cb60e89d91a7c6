"""Moves the weights of sub-models that accelerate offloads (`bark_accel.hf.offload`).

Its hooks move on `forward`, which our loops never call: the same hooks are asked here. Weights that stay on the CPU or
the disk are brought for as long as they are read; what was read stays valid, and is freed with its last reader.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bark_accel.hf.offload import keeps_elsewhere, takes_turns
from bark_accel.hf.parts import parts_of


def summon(module: Any) -> None:
    """Move a sub-model to its device and the one before it off, where `enable_cpu_offload` would for its forward."""
    if takes_turns(module):
        with torch.inference_mode(False), torch.no_grad():
            module._hf_hook.pre_forward(module)


@contextmanager
def weights_present(module: Any) -> Iterator[None]:
    """Have the weights of a sub-model where its parts compute, be they kept on the CPU or the disk otherwise."""
    kept: list[Any] = [part for part in parts_of(module) if keeps_elsewhere(part)]
    brought = []
    try:
        for part in kept:
            part._hf_hook.pre_forward(part)
            brought.append(part)
        yield
    finally:
        for part in brought:
            part._hf_hook.post_forward(part, None)
