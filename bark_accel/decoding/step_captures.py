"""The captured steps of a batch: which graph of each kind of step, and another where there can be none."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Generator, Tensor

from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCache

from .edits import LogitsEditor
from .graph_capture import Capturer, why_not
from .sampling import Sampler, SampleRules, TokenRange
from .step_memory import StepMemory, move_on

KERNELS, PERSISTENT, TORCH = "kernels", "persistent", "torch"
"""A step of kernels one by one, one kernel for many tokens, torch's own operations (`ops.step_choice`)."""

# An LRU bound: graphs of a batch and a kind of step. A user may vary sampling options.
MAX_GRAPHS = 8

_IN_WORDS = {PERSISTENT: "one CUDA kernel for many tokens", TORCH: "torch's own step in a CUDA graph"}


@dataclass(frozen=True)
class Block:
    """A place where tokens are to follow: the token `last` [B], and the cache up to it."""

    last: Tensor
    cache: KVCache
    sampler: Sampler
    memory: StepMemory
    model: CausalModel
    draws: bool
    """The sampler's kernel has the noise, and moves on what the next token reads."""
    generator: Generator
    """Drawn from where it does not."""

    def rewind(self) -> None:
        """Make the next step the first after `last`."""
        self.memory.rewind(self.last, self.cache, self.sampler.editor)


@dataclass(frozen=True)
class Replay:
    """A captured step, and what it reads that nobody else would keep."""

    run: Callable[[], None]
    rules: Sequence[SampleRules]
    editor: LogitsEditor


class StepCaptures:
    """Captures steps, each kind with scratch memory of its own: a failure of one leaves the others' whole.

    Where the kernels' cannot be captured, they themselves run from then on, and `fault` says why. Another kind is given
    up: `given_up`, which batches of a model share, says why.
    """

    def __init__(self, capturer: Capturer, make_other: Callable[[], Capturer | None], given_up: dict[str, str]):
        self._capturers = {KERNELS: capturer}
        self._make_other = make_other
        self._replays: dict[str, OrderedDict[tuple, Replay]] = {}
        self._given_up = given_up
        self.usable = True
        self.fault: str | None = None

    def __len__(self) -> int:
        return sum(map(len, self._replays.values()))

    def has(self, kind: str) -> bool:
        """Tell whether a kind of step was not given up."""
        return kind not in self._given_up

    def steps(self, ranges: tuple[TokenRange, ...], block: Block) -> Replay:
        """The kernels' steps of tokens of these ranges."""
        replay = self.replay(ranges, block, KERNELS)
        assert replay is not None
        return replay

    def replay(self, ranges: tuple[TokenRange, ...], block: Block, kind: str) -> Replay | None:
        """Steps of tokens of these ranges or, of `PERSISTENT`, as many as there are of one or two that take turns.

        None where the kind is given up.
        """
        if not self.has(kind):
            return None
        kept, config = self._replays.setdefault(kind, OrderedDict()), block.sampler.config
        stops = config.stop_tokens if kind == PERSISTENT else ()
        key = ranges, stops, replace(config, max_new_tokens=0, stop_tokens=(), pad_token=None, processors=None)
        if key not in kept:
            captured = self._captured(ranges, block, kind)
            if captured is None:
                return None
            kept[key] = captured
        kept.move_to_end(key)
        # A window takes turns between two: never the ones in use.
        while len(kept) > MAX_GRAPHS:
            kept.popitem(last=False)
        return kept[key]

    def give_up(self, kind: str, why: str) -> None:
        """Use the kernels' steps instead of another kind from now on, and warn."""
        self._given_up[kind] = f"{_IN_WORDS[kind]}: {why}"
        warnings.warn(
            f"bark_accel: graphs of kernels one by one take the place of {self._given_up[kind]}", stacklevel=2
        )

    def _captured(self, ranges: tuple[TokenRange, ...], block: Block, kind: str) -> Replay | None:
        steps, sampler = _steps(ranges, block, kind), block.sampler
        rules = [sampler.rules(allowed, block.memory.device) for allowed in dict.fromkeys(ranges)]
        generator = block.generator if sampler.config.do_sample and not block.draws else None
        block.rewind()
        block.memory.limit.fill_(1)
        run, self.usable = steps, False
        try:
            if kind != KERNELS or self.fault is None:
                run = self._capturer(kind).capture(steps, generator)
        except RuntimeError as error:
            if kind != KERNELS:
                self.usable = True
                self.give_up(kind, why_not(error))
                return None
            self.fault = why_not(error)
        self.usable = True
        return Replay(run, rules, sampler.editor)

    def _capturer(self, kind: str) -> Capturer:
        if kind not in self._capturers:
            capturer = self._make_other()
            assert capturer is not None
            self._capturers[kind] = capturer
        return self._capturers[kind]


def _steps(ranges: tuple[TokenRange, ...], block: Block, kind: str) -> Callable[[], None]:
    """Make the steps that are captured, or the launch."""
    sampler, cache, memory, model = block.sampler, block.cache, block.memory, block.model
    generator = block.generator if sampler.config.do_sample else None
    factors = None if sampler.editor.factors is None else memory.factors
    next_step, draws = memory.next_step(cache), block.draws
    model = model.with_torch_steps() if kind == TORCH else model

    def launch() -> None:
        sampler.draw_tokens(model, ranges, cache, memory.philox, next_step, memory.limit)

    def steps() -> None:
        for allowed in ranges:
            logits = model.step_logits(memory.ids, cache, allowed.head_rows)[:, -1]
            if draws:
                sampler.draw_next(logits, allowed, memory.philox, next_step, factors)
            else:
                move_on(next_step, sampler.draw_ahead(logits, allowed, generator, factors))

    return launch if kind == PERSISTENT else steps
