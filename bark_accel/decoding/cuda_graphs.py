"""CUDA graphs of decode steps: some whole tokens, their drawing included, are one launch.

A graph replays kernels on fixed addresses. What changes from token to token (ids, position, where the drawn token goes,
random numbers) is kept in device memory and moved on by the graph itself, so that a graph can hold many tokens and many
replays follow each other without the host. Noise starts in the caller's state; the caller's generator follows token by
token as they are given out, so tokens drawn too far (after the end of speech) leave no trace in it. Where the ops do
not know torch's noise (`graph_draw`), it comes from a generator of the graphs' own, one token a graph.

After the notes on CUDA graphs, memory pools and generators in PyTorch's documentation.
"""

from __future__ import annotations

import os
import time
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from bark_accel.ops.device import synchronize
from bark_accel.ops.graph_draw import NextStep, advance, follows_torch, states_after
from bark_accel.ops.sample_checks import raise_bad_rows
from bark_accel.ops.step_choice import keep, of_trial
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCache

from .edits import LogitsEditor
from .graph_capture import Capturer, make_capturer, why_not
from .kept_graphs import KeptGraphs
from .rng import default_generator
from .sampling import Sampler, SampleRules, TokenRange

# Tokens between two looks for the end of speech. A look waits for the device; what was drawn beyond the end is wasted.
EOS_CHECK_TOKENS = 8
# Tokens per block, at most, when no stop token has to be checked.
MAX_BLOCK_TOKENS = 64
# Tokens of one kernel, at most: a whole semantic stage (Bark's models have 1,024 positions).
MAX_RUN_TOKENS = 1024
# The first tokens of a launch of many that are compared with steps, once.
COMPARED_TOKENS = 8
# Tokens that one graph holds.
GRAPH_TOKENS = 8
# LRU bounds: graph sets a stage, graphs a set. A user may vary batch sizes and sampling options.
MAX_KEPT = 4
MAX_GRAPHS = 8

GRAPHS_VARIABLE = "BARK_ACCEL_CUDA_GRAPHS"


def graphs_are_on() -> bool:
    """Tell whether the environment lets graphs be used: `BARK_ACCEL_CUDA_GRAPHS` is not 0.

    Raises
    ------
    ValueError
        The variable is neither 0 nor 1.
    """
    value = os.environ.get(GRAPHS_VARIABLE) or "1"
    if value not in ("0", "1"):
        raise ValueError(f"{GRAPHS_VARIABLE}: expected 0 or 1, got {value!r}")
    return value == "1"


@dataclass(frozen=True)
class Replay:
    """A captured step, and what it reads that nobody else would keep."""

    run: Callable[[], None]
    rules: Sequence[SampleRules]
    editor: LogitsEditor


class StepGraphs:
    """The graphs of one model, batch and cache, one for the id ranges of some tokens and a sampling config.

    A `TokenSource`. Where something cannot be captured, the same steps run one by one from then on.

    Serves one generation at a time (`start`). Holds no weights: matrices are read where they stand, LayerNorms and
    biases from copies that `start` refreshes. What a graph reads of its sampler is kept beside it. Tokens are drawn
    from `generator`.
    """

    def __init__(self, capturer: Capturer, model: CausalModel, cache: KVCache, generator: Generator):
        rows, device = cache.keys.shape[1], cache.keys.device
        self._capturer = capturer
        # Born in inference mode they could not be written outside of it by a later call.
        with torch.inference_mode(False):
            self._ids = torch.zeros(rows, 1, dtype=torch.int64, device=device)
            self._drawn = torch.zeros(MAX_RUN_TOKENS, rows, dtype=torch.int64, device=device)
            self._count = torch.zeros(rows, dtype=torch.int64, device=device)
            self._philox = torch.zeros(2, dtype=torch.int64, device=device)
            self._limit = torch.zeros(1, dtype=torch.int64, device=device)
            self._vectors = [torch.empty_like(t) for t in model.vectors]
            self._factors = torch.ones(rows, model.spec.output_vocab_size + 1, device=device, dtype=torch.float32)
        self._generator = generator
        self._entries = rows * model.spec.output_vocab_size
        self._knows_noise = model.ops.draw_next is not None and follows_torch(device, model.ops.draw_next)
        self._draws_tokens = self._knows_noise and model.draws_tokens(cache)
        self._compared: set[tuple] = set()
        self._replays: OrderedDict[tuple, Replay] = OrderedDict()
        self._ahead: deque[tuple[Tensor, Tensor, Tensor | None]] = deque()
        self._model: CausalModel | None = None
        self.usable = True
        self.fault: str | None = None

    def __len__(self) -> int:
        return len(self._replays)

    def start(self, model: CausalModel) -> None:
        """Begin a generation with a model that has the fingerprint of the first one."""
        self._ahead.clear()
        for own, given in zip(self._vectors, model.vectors, strict=True):
            own.copy_(given)
        self._model = model.with_vectors(self._vectors)

    def end(self) -> None:
        """Let go of the model."""
        self._ahead.clear()
        self._model = None

    @property
    def ahead(self) -> bool:
        """See `TokenSource`."""
        return bool(self._ahead)

    def forget(self, cache: KVCache) -> None:
        """See `TokenSource`."""
        cache.truncate(cache.position - len(self._ahead))
        self._ahead.clear()

    def next_token(
        self,
        last: Tensor,
        cache: KVCache,
        sampler: Sampler,
        allowed: Callable[[int], TokenRange],
        limit: int,
    ) -> Tensor:
        """See `TokenSource`. Where there are stop tokens, it is given out on the host, which had to look at it."""
        source = sampler.generator or default_generator(self._ids.device)
        if not self._ahead:
            self._run_block(last, cache, sampler, allowed, limit, source)
        tokens, on_host, state = self._ahead.popleft()
        if state is not None:
            source.set_state(state)
        raise_bad_rows("CUDA graph", on_host)
        sampler.note(tokens)
        return on_host if sampler.config.stop_tokens else tokens

    def _run_block(
        self,
        last: Tensor,
        cache: KVCache,
        sampler: Sampler,
        allowed: Callable[[int], TokenRange],
        limit: int,
        source: Generator,
    ) -> None:
        assert self._model is not None, "start comes first"
        config = sampler.config
        self._model.check_room(cache.position, 1)
        room = min(cache.capacity, self._model.weights.positions.shape[0]) - cache.position
        runs = self._runs(sampler)
        ranges = [allowed(i) for i in range(min(limit, room, MAX_RUN_TOKENS if runs else MAX_BLOCK_TOKENS))]
        if runs and self._run_tokens(last, cache, sampler, ranges, source):
            return
        count = min(len(ranges), EOS_CHECK_TOKENS if config.stop_tokens else MAX_BLOCK_TOKENS)
        parts = split(ranges[:count], GRAPH_TOKENS if self._draws(sampler) else 1)
        replays = {part: self._replay(part, last, cache, sampler) for part in dict.fromkeys(parts)}
        self._rewind(last, cache, sampler)
        states = self._run([replays[part] for part in parts], count, sampler, source)
        self._hand_out(count, cache, states)

    def _hand_out(self, count: int, cache: KVCache, states: Sequence[Tensor | None]) -> None:
        cache.position += count
        drawn = self._drawn[:count].clone()
        self._ahead.extend(zip(drawn, drawn.cpu(), states, strict=True))

    def _run_tokens(
        self, last: Tensor, cache: KVCache, sampler: Sampler, ranges: Sequence[TokenRange], source: Generator
    ) -> bool:
        """One launch for the tokens to come, as far as their ranges are alike or take turns, or up to their end.

        False, and nothing has happened, where its first tokens turn out to be others than those of step after step.
        """
        state = source.get_state() if sampler.config.do_sample else None
        if state is not None:
            self._philox.copy_(state.view(torch.int64))
        ways, tokens = turns(ranges)
        key = ways, sampler.config.stop_tokens
        replay = self._replay(ways, last, cache, sampler, key)
        if key not in self._compared and not self._is_taken(replay, last, cache, sampler, ranges[:tokens]):
            self._draws_tokens = False
            return False
        self._compared.add(key)
        count = self._launch(replay, tokens, last, cache, sampler)
        ahead = advance(self._entries, self._philox.device)
        self._hand_out(count, cache, [None] * count if state is None else states_after(state, count, ahead))
        return True

    def _launch(self, replay: Replay, tokens: int, last: Tensor, cache: KVCache, sampler: Sampler) -> int:
        """Have up to so many tokens drawn that follow `last`; returns how many were."""
        self._rewind(last, cache, sampler)
        self._limit.fill_(tokens)
        replay.run()
        return int(self._count[0]) if sampler.config.stop_tokens else tokens

    def _is_taken(
        self, replay: Replay, last: Tensor, cache: KVCache, sampler: Sampler, ranges: Sequence[TokenRange]
    ) -> bool:
        """Compare a launch of many tokens with steps and, where a trial has to choose, its time with that of graphs."""
        if not self._equals_steps(replay, last, cache, sampler, ranges):
            return False
        assert self._model is not None
        tried = self._model.step_to_be_tried(cache)
        # Where the speech ends before a graph does, there is nothing to compare.
        if tried is None or self._launch(replay, min(len(ranges), GRAPH_TOKENS), last, cache, sampler) < GRAPH_TOKENS:
            return True
        parts = split(ranges[:GRAPH_TOKENS], GRAPH_TOKENS)
        graphs = [self._replay(part, last, cache, sampler) for part in parts]

        def by_graphs() -> None:
            self._rewind(last, cache, sampler)
            for graph in graphs:
                graph.run()

        def as_one() -> None:
            self._launch(replay, GRAPH_TOKENS, last, cache, sampler)

        device = self._ids.device
        ways = {"kernels": by_graphs, "persistent": as_one}
        faster = of_trial({name: partial(_seconds, run, device) for name, run in ways.items()})
        return keep(tried, faster).step == "persistent"

    def _equals_steps(
        self, replay: Replay, last: Tensor, cache: KVCache, sampler: Sampler, ranges: Sequence[TokenRange]
    ) -> bool:
        """Compare the first tokens of a launch with those of steps; no GPU's results are trusted unseen."""
        wanted = min(len(ranges), COMPARED_TOKENS)
        count = self._launch(replay, wanted, last, cache, sampler)
        drawn = self._drawn[:count].clone()
        steps = [self._replay((allowed,), last, cache, sampler) for allowed in ranges[:count]]
        self._rewind(last, cache, sampler)
        for step in steps:
            step.run()
        # Beyond a row's end, steps go on.
        stops = torch.tensor(sampler.config.stop_tokens, dtype=torch.int64, device=drawn.device)
        ends = torch.isin(torch.cat([last[None].to(drawn.device), drawn]), stops)
        over = ends.cumsum(0)[:-1] > 0
        same = torch.equal(drawn.masked_fill(over, 0), self._drawn[:count].masked_fill(over, 0))
        if same and (count == wanted or bool((ends.cumsum(0)[-1] > 0).all())):
            return True
        warnings.warn(
            "bark_accel: many tokens in one CUDA kernel are other tokens than those of kernels one by one on this "
            "GPU; the latter are used. Please report this",
            stacklevel=1,
        )
        return False

    def _run(self, replays: list[Replay], tokens: int, sampler: Sampler, source: Generator) -> Sequence[Tensor | None]:
        """Replay; return the source's state after each of the tokens, or None where nothing is drawn."""
        if not sampler.config.do_sample:
            for replay in replays:
                replay.run()
            return [None] * tokens
        state = source.get_state()
        if self._draws(sampler):
            self._philox.copy_(state.view(torch.int64))
            for replay in replays:
                replay.run()
            return states_after(state, tokens, advance(self._entries, self._philox.device))
        self._generator.set_state(state)
        states = []
        for replay in replays:
            replay.run()
            states.append(self._generator.get_state())
        return states

    def _draws(self, sampler: Sampler) -> bool:
        """Tell whether the sampler's kernel has the noise, and moves on what the next token reads."""
        return self._knows_noise and sampler.draws_all_ids

    def _runs(self, sampler: Sampler) -> bool:
        """Tell whether one kernel draws many tokens."""
        return self._draws_tokens and self._draws(sampler) and sampler.draws_alone

    def _rewind(self, last: Tensor, cache: KVCache, sampler: Sampler) -> None:
        """Make the next replay the first of a block that follows `last` at the cache's position."""
        self._ids.copy_(last[:, None])
        self._count.zero_()
        if sampler.editor.factors is not None:
            self._factors.copy_(sampler.editor.factors)
        cache.truncate(cache.position)

    def _replay(
        self, ranges: tuple[TokenRange, ...], last: Tensor, cache: KVCache, sampler: Sampler, of: tuple | None = None
    ) -> Replay:
        """The graph of `ranges`, by the name `of` where it is one kernel."""
        key = of or ranges, replace(sampler.config, max_new_tokens=0, stop_tokens=(), pad_token=None, processors=None)
        if key not in self._replays:
            self._rewind(last, cache, sampler)
            self._limit.fill_(1)
            self.usable = False
            self._replays[key] = self._capture(ranges, cache, sampler, as_one=of is not None)
            self.usable = True
        self._replays.move_to_end(key)
        # A window takes turns between two: never the ones in use.
        while len(self._replays) > MAX_GRAPHS:
            self._replays.popitem(last=False)
        return self._replays[key]

    def _capture(
        self, ranges: tuple[TokenRange, ...], cache: KVCache, sampler: Sampler, *, as_one: bool = False
    ) -> Replay:
        rules = [sampler.rules(allowed, self._ids.device) for allowed in dict.fromkeys(ranges)]
        model, generator = self._model, self._generator if sampler.config.do_sample else None
        assert model is not None
        factors = None if sampler.editor.factors is None else self._factors
        draws = self._draws(sampler)
        next_step = NextStep(self._ids, self._drawn, self._count, cache.length)

        def steps() -> None:
            if as_one:
                sampler.draw_tokens(model, ranges, cache, self._philox, next_step, self._limit)
                return
            for allowed in ranges:
                logits = model.step_logits(self._ids, cache, allowed.head_rows)[:, -1]
                if draws:
                    sampler.draw_next(logits, allowed, self._philox, next_step, factors)
                else:
                    _move_on(next_step, sampler.draw_ahead(logits, allowed, generator, factors))

        return Replay(self._captured(steps, None if draws else generator), rules, sampler.editor)

    def _captured(self, steps: Callable[[], None], generator: Generator | None) -> Callable[[], None]:
        """Return what repeats the steps: a graph or, where there can be none, they themselves."""
        if self.fault is None:
            try:
                return self._capturer.capture(steps, generator)
            except RuntimeError as error:
                self.fault = why_not(error)
        return steps


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    synchronize(device)
    began = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - began


def _move_on(step: NextStep, drawn: Tensor) -> None:
    """Do to `step` what `draw_next` does, for ids [N] that were drawn otherwise."""
    step.ids.copy_(drawn[:, None])
    step.drawn.index_copy_(0, step.counts[:1], drawn[None])
    step.counts.add_(1)
    step.length.add_(1)


def split(ranges: Sequence[TokenRange], tokens: int) -> list[tuple[TokenRange, ...]]:
    """Cut the ranges of tokens to come into those of graphs: of `tokens` where they are alike or take turns, or of one.

    Others would be patterns that never come again, a capture each.
    """
    parts, at = [], 0
    while at < len(ranges):
        part = tuple(ranges[at : at + tokens])
        regular = len(part) == tokens and part[2:] == part[:-2]
        parts.append(part if regular else part[:1])
        at += len(parts[-1])
    return parts


def turns(ranges: Sequence[TokenRange]) -> tuple[tuple[TokenRange, ...], int]:
    """Find how many of the first ranges are alike or take turns, and which one or two those are."""
    tokens = next((i for i in range(2, len(ranges)) if ranges[i] != ranges[i - 2]), len(ranges))
    return tuple(dict.fromkeys(ranges[:tokens])), tokens


class GraphStore(KeptGraphs[StepGraphs]):
    """Keeps the graphs of one stage between calls, as long as all that they read stands where it stood.

    Two generations at once each get graphs of their own.
    """

    def __init__(self, what: str = "the decode step", most: int = MAX_KEPT):
        super().__init__(what, most)

    @contextmanager
    def lend_steps(self, model: CausalModel, cache: KVCache, *, keep: bool = True) -> Iterator[StepGraphs | None]:
        """Graphs for one generation with `cache`, started; None on a device without."""

        def make() -> StepGraphs | None:
            capturer = make_capturer(cache.keys.device)
            return None if capturer is None else StepGraphs(capturer, model, cache, Generator(cache.keys.device))

        with self.lend(fingerprint(model, cache), make, keep=keep) as graphs:
            if graphs is None:
                yield None
                return
            graphs.start(model)
            try:
                yield graphs
            finally:
                graphs.end()


def fingerprint(model: CausalModel, cache: KVCache) -> tuple[Any, ...]:
    """Equal for models and caches whose graphs are interchangeable."""
    places = [(t.data_ptr(), t.dtype, t.device, t.shape, t.stride()) for t in (*model.matrices, *cache.tensors)]
    return (*places, *((t.dtype, t.shape) for t in model.vectors))
