"""Traces what each stage of a Bark model takes and returns while it generates, stock or accelerated."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import BarkModel

from bark_accel.ops.device import synchronize
from bark_accel.stages.spec import STAGES

from .offload import device_of
from .points import POINTS


@dataclass
class StageTrace:
    """Seconds (summed over calls) and outputs (of the last call) of the stages that ran, by stage name.

    Outputs are detached copies: token tensors, and the waveform under `codec` (a list of waveforms where rows
    of different lengths were asked for).
    """

    seconds: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)


@contextmanager
def trace_stages(model: BarkModel, on_stage: Callable[[str], None] | None = None) -> Iterator[StageTrace]:
    """Trace the stages of every generation in the block.

    Parameters
    ----------
    model : BarkModel
        Wrapped on the instance; after the block its attributes are what they were, whatever happened inside.
    on_stage : callable, optional
        Called with the name of each stage as it starts.
    """
    trace = StageTrace()
    with ExitStack() as undo:
        for stage in STAGES:
            owner, name = POINTS[stage].owner(model), POINTS[stage].method
            undo.callback(_put_back, owner, name, name in vars(owner), vars(owner).get(name))
            setattr(owner, name, _traced(stage, getattr(owner, name), device_of(owner), trace, on_stage))
        yield trace


def _traced(
    stage: str,
    method: Callable[..., Any],
    device: torch.device,
    trace: StageTrace,
    on_stage: Callable[[str], None] | None,
) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        if on_stage is not None:
            on_stage(stage)
        start = _now(device)
        result = method(*args, **kwargs)
        trace.seconds[stage] = trace.seconds.get(stage, 0.0) + _now(device) - start
        # With return_output_lengths the coarse stage returns (tokens, lengths).
        trace.outputs[stage] = _copy(result[0] if isinstance(result, tuple) else result)
        return result

    return call


def _put_back(owner: Any, name: str, was_there: bool, value: Any) -> None:
    if was_there:
        setattr(owner, name, value)
    elif name in vars(owner):
        delattr(owner, name)


def _copy(value: Tensor | list[Tensor]) -> Any:
    return [_copy(item) for item in value] if isinstance(value, list) else value.detach().clone()


def _now(device: torch.device) -> float:
    synchronize(device)
    return time.perf_counter()
