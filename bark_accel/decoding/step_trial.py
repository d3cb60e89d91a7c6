"""A trial of the kinds of step of a CUDA graph (`bark_accel.ops.step_choice`): which one takes the least time here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from bark_accel.ops.device import synchronize
from bark_accel.ops.step_choice import keep, of_trial

from .graph_parts import GRAPH_TOKENS, split
from .sampling import TokenRange
from .step_captures import KERNELS, PERSISTENT, TORCH, Block, Replay, StepCaptures
from .token_launches import TokenLaunches, launch


def tried(
    key: str, block: Block, ranges: Sequence[TokenRange], captures: StepCaptures, launches: TokenLaunches
) -> str | None:
    """Time each kind of step on the first tokens that fill a graph, and keep the answer for `key`; returns it.

    None where these tokens do not tell: they fill no graph, or their speech ends before it does.
    """
    part = tuple(ranges[:GRAPH_TOKENS])
    if not block.draws or len(part) < GRAPH_TOKENS or len(split(part, GRAPH_TOKENS)) > 1:
        return None
    replays = {kind: captures.replay(part, block, kind) for kind in (KERNELS, TORCH)}
    if launches.take(block.sampler, block.draws):
        replays[PERSISTENT] = one = launches.checked(block, ranges)
        if one is not None and launch(one, GRAPH_TOKENS, block) < GRAPH_TOKENS:
            return None
    chosen = of_trial({kind: partial(_seconds, replay, block) for kind, replay in replays.items() if replay})
    return keep(key, chosen).step


def _seconds(replay: Replay, block: Block) -> float:
    block.rewind()
    block.memory.limit.fill_(GRAPH_TOKENS)
    return _timed(replay.run, block.memory.device)


def _timed(run: Callable[[], None], device: torch.device) -> float:
    synchronize(device)
    began = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - began
