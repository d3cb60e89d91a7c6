"""Many tokens of a batch in one launch (`bark_accel.ops.token_run`), believed once they equal those of steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .graph_parts import turns
from .sampling import Sampler, TokenRange
from .step_captures import PERSISTENT, Block, Replay, StepCaptures

# The first tokens of a launch that are compared with steps, once.
COMPARED_TOKENS = 8


class TokenLaunches:
    """The launches of one batch. `on`: its steps are to be drawn so, wherever they can be."""

    def __init__(self, captures: StepCaptures, on: bool):
        self._captures = captures
        self._compared: set[tuple] = set()
        self.on = on

    def take(self, sampler: Sampler, draws: bool) -> bool:
        """Tell whether a sampler's tokens are drawn by launches; `draws` as in `Block`."""
        return self.on and self._captures.has(PERSISTENT) and draws and sampler.draws_alone

    def run(self, block: Block, ranges: Sequence[TokenRange]) -> int:
        """Draw the tokens to come, as far as their ranges are alike or take turns, or up to their end.

        Returns how many those are; 0, and nothing has happened, where there turns out to be no such launch.
        """
        replay = self.checked(block, ranges)
        return 0 if replay is None else launch(replay, turns(ranges)[1], block)

    def checked(self, block: Block, ranges: Sequence[TokenRange]) -> Replay | None:
        """Find the launch for the first of these ranges; its first tokens are compared with those of steps, once.

        None, and given up, where it cannot be captured or they differ.
        """
        ways, tokens = turns(ranges)
        replay, key = self._captures.replay(ways, block, PERSISTENT), (ways, block.sampler.config.stop_tokens)
        if replay is None or key in self._compared:
            return replay
        if not self._equals_steps(replay, block, ranges[: min(tokens, COMPARED_TOKENS)]):
            self._captures.give_up(PERSISTENT, "it draws other tokens than those of kernels one by one; please report")
            return None
        self._compared.add(key)
        return replay

    def _equals_steps(self, replay: Replay, block: Block, ranges: Sequence[TokenRange]) -> bool:
        """Compare the tokens of a launch with those of steps; no GPU's results are trusted unseen."""
        count = launch(replay, len(ranges), block)
        drawn = block.memory.drawn[:count].clone()
        steps = [self._captures.steps((allowed,), block) for allowed in ranges[:count]]
        block.rewind()
        for step in steps:
            step.run()
        # Beyond a row's end, steps go on.
        stops = torch.tensor(block.sampler.config.stop_tokens, dtype=torch.int64, device=drawn.device)
        ends = torch.isin(torch.cat([block.last[None].to(drawn.device), drawn]), stops)
        over = ends.cumsum(0)[:-1] > 0
        same = torch.equal(drawn.masked_fill(over, 0), block.memory.drawn[:count].masked_fill(over, 0))
        return same and (count == len(ranges) or bool((ends.cumsum(0)[-1] > 0).all()))


def launch(replay: Replay, tokens: int, block: Block) -> int:
    """Have up to so many tokens drawn that follow a block; returns how many were."""
    block.rewind()
    block.memory.limit.fill_(tokens)
    replay.run()
    return int(block.memory.counts[0]) if block.sampler.config.stop_tokens else tokens
