"""Draws as on a GPU, on the CPU: a CUDA generator's state and noise, and the ops of graphs made of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bark_accel.ops import native
from bark_accel.ops.graph_draw import NextStep, advance, lanes
from bark_accel.ops.interface import StepCache, StepWeights
from bark_accel.ops.token_run import TokenRun

_WORD = np.uint64(0xFFFFFFFF)


class PhiloxGenerator:
    """What a generation uses of a generator."""

    device = torch.device("cpu")

    def __init__(self, seed: int):
        self._state = torch.tensor([seed, 0], dtype=torch.int64)

    def get_state(self) -> Tensor:
        return self._state.clone().view(torch.uint8)

    def set_state(self, state: Tensor) -> None:
        self._state = state.clone().view(torch.int64)

    def noise(self, rows: int, entries: int) -> Tensor:
        """The next draw [rows, entries] float32."""
        drawn = exponential(self._state, rows, entries)
        self._state[1] += advance(rows * entries, self.device)
        return drawn


def exponential(state: Tensor, rows: int, entries: int) -> Tensor:
    """Noise [rows, entries] float32 of a state (seed, offset)."""
    seed, offset = state.tolist()
    threads = lanes(rows * entries, torch.device("cpu"))
    turn, lane = np.divmod(np.arange(rows * entries, dtype=np.uint64), np.uint64(threads))
    call = np.uint64(offset // 4) + turn // np.uint64(4)
    words = _philox([call & _WORD, call >> np.uint64(32), lane, np.zeros_like(lane)], seed)
    word = np.choose((turn % np.uint64(4)).astype(np.int64), words).astype(np.float32)
    uniform = torch.from_numpy(word * np.float32(2**-32) + np.float32(2**-33))
    log = torch.where(uniform >= 1 - 2**-24, torch.tensor(-(2.0**-24)), uniform.log())
    return -log.view(rows, entries)


def _philox(counter: list[np.ndarray], seed: int) -> list[np.ndarray]:
    key = [np.uint64(seed % 2**32), np.uint64(seed // 2**32 % 2**32)]
    for _ in range(10):
        first, third = np.uint64(0xD2511F53) * counter[0], np.uint64(0xCD9E8D57) * counter[2]
        counter = [
            third >> np.uint64(32) ^ counter[1] ^ key[0],
            third & _WORD,
            first >> np.uint64(32) ^ counter[3] ^ key[1],
            first & _WORD,
        ]
        key = [key[0] + np.uint64(0x9E3779B9) & _WORD, key[1] + np.uint64(0xBB67AE85) & _WORD]
    return counter


def draw_next(logits: Tensor, philox: Tensor | None, vocab_size: int, step: NextStep, *rules: Any) -> Tensor:
    """See `bark_accel.ops.graph_draw.draw_next`."""
    noise = None
    if philox is not None:
        moved = int(step.counts[0]) * advance(len(logits) * vocab_size, logits.device)
        noise = exponential(philox + torch.tensor([0, moved]), len(logits), vocab_size)
    ids = native.fused_sample(logits, noise, *rules)
    step.ids.copy_(ids[:, None])
    step.drawn[int(step.counts[0])] = ids
    step.counts.add_(1)
    step.length.add_(1)
    return ids


def decode_tokens(
    weights: StepWeights,
    heads: Sequence[tuple[Tensor, Tensor | None]],
    cache: StepCache,
    step: NextStep,
    run: TokenRun,
    rules: Sequence[Sequence[Any]],
) -> None:
    """See `bark_accel.ops.token_run.decode_tokens`."""

    def ended() -> Tensor:
        return (step.ids[:, 0] == run.stop) | ((step.ids[:, 0] < 0) & (run.stop >= 0))

    for token in range(int(run.limit)):
        if ended().all():
            return
        way = token % len(heads)
        fed = weights._replace(head=heads[way][0], head_scales=heads[way][1])
        logits = native.decode_step(step.ids, fed, cache)[:, -1]
        last, over = step.ids[:, 0].clone(), ended()
        ids = torch.where(over, last, draw_next(logits, run.philox, run.vocab_size, step, *rules[way]))
        step.ids.copy_(ids[:, None])
        step.drawn[int(step.counts[0]) - 1] = ids
