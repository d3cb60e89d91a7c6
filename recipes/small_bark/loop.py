"""The training loop of every model: AdamW, a schedule, a progress bar, and checkpoints: a killed run goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

_WARM_UP = 50
# Last part of the steps, in which the rate falls to zero.
_DECAY = 0.35
_SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class Plan:
    """Steps in all, the highest learning rate, and the weight decay of matrices."""

    steps: int
    rate: float
    weight_decay: float = 0.0


def train(
    module: nn.Module,
    loss: Callable[[torch.Generator], tuple[Tensor, dict[str, float]]],
    plan: Plan,
    path: Path,
    seed: int,
) -> None:
    """
    Call `loss` once a step, with a generator seeded by the step (so that a run that goes on draws what it would have
    drawn), and write weights and optimizer to `path`, once a minute and at the end. `loss` gives figures for the bar.
    A longer plan for the same path goes on from the last step.
    """
    matrices = [parameter for parameter in module.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in module.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.98))
    first = _resume(module, optimizer, path)
    saved = time.monotonic()
    averages: dict[str, float] = {}
    module.train()
    bar = tqdm(range(first, plan.steps), initial=first, total=plan.steps, desc=path.stem, mininterval=5)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * _schedule(step, plan.steps)
        value, figures = loss(torch.Generator().manual_seed(seed * 1_000_003 + step))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        averages = {name: averages.get(name, new) * 0.98 + 0.02 * new for name, new in figures.items()}
        bar.set_postfix({name: f"{average:.3f}" for name, average in averages.items()}, refresh=False)
        if time.monotonic() - saved > _SAVE_SECONDS:
            _save(module, optimizer, step + 1, path)
            saved = time.monotonic()
    _save(module, optimizer, plan.steps, path)
    module.eval()


def load(module: nn.Module, path: Path) -> None:
    """Read the weights that `train` wrote."""
    module.load_state_dict(torch.load(path, weights_only=True)["weights"])
    module.eval()


def finished(path: Path, plan: Plan) -> bool:
    """Tell whether `train` has been through the whole plan."""
    return path.exists() and torch.load(path, weights_only=True, mmap=True)["step"] >= plan.steps


def save_arrays(path: Path, **arrays: np.ndarray | list) -> None:
    """Write an .npz, whole or not at all: what a killed run has left must not pass for a result."""
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(new, path)


def _schedule(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / _WARM_UP, (steps - step) / (_DECAY * steps))


def _resume(module: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    module.load_state_dict(state["weights"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def _save(module: nn.Module, optimizer: torch.optim.Optimizer, step: int, path: Path) -> None:
    new = path.with_suffix(".new")
    torch.save({"weights": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, new)
    os.replace(new, path)
