"""The tokens of one batch by CUDA graphs, run ahead of who asks for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from bark_accel.ops.graph_draw import advance, follows_torch, states_after
from bark_accel.ops.sample_checks import raise_bad_rows
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCache

from .graph_parts import GRAPH_TOKENS, split
from .rng import default_generator
from .sampling import Sampler, TokenRange
from .step_captures import KERNELS, PERSISTENT, TORCH, Block, Replay, StepCaptures
from .step_memory import MAX_RUN_TOKENS, StepMemory
from .step_trial import tried
from .token_launches import TokenLaunches

# Tokens between two looks for the end of speech. A look waits for the device; what was drawn beyond the end is wasted.
EOS_CHECK_TOKENS = 8
# Tokens per block, at most, when no stop token has to be checked.
MAX_BLOCK_TOKENS = 64


class StepGraphs:
    """The graphs of one model, batch and cache, one for the id ranges of some tokens and a sampling config.

    A `TokenSource`. Where something cannot be captured, the same steps run one by one from then on.

    Serves one generation at a time (`start`). Holds no weights: matrices are read where they stand, LayerNorms and
    biases from copies that `start` refreshes. What a graph reads of its sampler is kept beside it. Tokens are drawn
    from `generator`.
    """

    def __init__(self, captures: StepCaptures, model: CausalModel, cache: KVCache, generator: Generator):
        rows, device = cache.keys.shape[1], cache.keys.device
        self._captures = captures
        self._memory = StepMemory.of(rows, model.spec.output_vocab_size, device)
        # Born in inference mode they could not be written outside of it by a later call.
        with torch.inference_mode(False):
            self._vectors = [torch.empty_like(t) for t in model.vectors]
        self._generator = generator
        self._entries = rows * model.spec.output_vocab_size
        self._knows_noise = model.ops.draw_next is not None and follows_torch(device, model.ops.draw_next)
        self._to_be_tried = model.step_to_be_tried(cache) if self._knows_noise else None
        self._launches = TokenLaunches(captures, self._knows_noise and model.draws_tokens(cache))
        self._kind = TORCH if model.takes_torch_steps(cache) else KERNELS
        self._ahead: deque[tuple[Tensor, Tensor, Tensor | None]] = deque()
        self._model: CausalModel | None = None

    def __len__(self) -> int:
        return len(self._captures)

    @property
    def usable(self) -> bool:
        """See `Graphs`."""
        return self._captures.usable

    @property
    def fault(self) -> str | None:
        """See `Graphs`."""
        return self._captures.fault

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
        source = sampler.generator or default_generator(self._memory.device)
        if not self._ahead:
            self._run_block(self.block(last, cache, sampler), allowed, limit, source)
        tokens, on_host, state = self._ahead.popleft()
        if state is not None:
            source.set_state(state)
        raise_bad_rows("CUDA graph", on_host)
        sampler.note(tokens)
        return on_host if sampler.config.stop_tokens else tokens

    def block(self, last: Tensor, cache: KVCache, sampler: Sampler) -> Block:
        """Make the place where tokens follow the token `last` [B] and the cache."""
        assert self._model is not None, "start comes first"
        draws = self._knows_noise and sampler.draws_all_ids
        return Block(last, cache, sampler, self._memory, self._model, draws, self._generator)

    def _run_block(self, block: Block, allowed: Callable[[int], TokenRange], limit: int, source: Generator) -> None:
        cache, config, launches = block.cache, block.sampler.config, self._launches
        block.model.check_room(cache.position, 1)
        room = min(cache.capacity, block.model.weights.positions.shape[0]) - cache.position
        most = MAX_RUN_TOKENS if launches.take(block.sampler, block.draws) else MAX_BLOCK_TOKENS
        ranges = [allowed(i) for i in range(min(limit, room, most))]
        state = source.get_state() if config.do_sample else None
        if state is not None and block.draws:
            self._memory.philox.copy_(state.view(torch.int64))
        self._choose_step(block, ranges)
        count = launches.run(block, ranges) if launches.take(block.sampler, block.draws) else 0
        if count:
            states = self._states_after(state, count)
        else:
            count = min(len(ranges), EOS_CHECK_TOKENS if config.stop_tokens else MAX_BLOCK_TOKENS)
            parts = split(ranges[:count], GRAPH_TOKENS if block.draws else 1)
            states = self._run_parts(block, parts, state, count)
        cache.position += count
        drawn = self._memory.drawn[:count].clone()
        self._ahead.extend(zip(drawn, drawn.cpu(), states, strict=True))

    def _choose_step(self, block: Block, ranges: Sequence[TokenRange]) -> None:
        """Choose the kind of step, where a trial has to."""
        if self._to_be_tried is None:
            return
        chosen = tried(self._to_be_tried, block, ranges, self._captures, self._launches)
        if chosen is not None:
            self._to_be_tried = None
            self._launches.on &= chosen == PERSISTENT
            self._kind = TORCH if chosen == TORCH else KERNELS

    def _run_parts(
        self, block: Block, parts: Sequence[tuple[TokenRange, ...]], state: Tensor | None, tokens: int
    ) -> Sequence[Tensor | None]:
        """Replay a graph for each part; returns the state of the caller's generator after each of their tokens."""
        graphs = {part: self._graph(part, block) for part in dict.fromkeys(parts)}
        block.rewind()
        replays = [graphs[part] for part in parts]
        if state is None or block.draws:
            for replay in replays:
                replay.run()
            return self._states_after(state, tokens)
        self._generator.set_state(state)
        states = []
        for replay in replays:
            replay.run()
            states.append(self._generator.get_state())
        return states

    def _graph(self, part: tuple[TokenRange, ...], block: Block) -> Replay:
        return self._captures.replay(part, block, self._kind) or self._captures.steps(part, block)

    def _states_after(self, state: Tensor | None, tokens: int) -> Sequence[Tensor | None]:
        """Find the state after each of the tokens that the kernels drew; None where nothing is drawn."""
        if state is None:
            return [None] * tokens
        return states_after(state, tokens, advance(self._entries, self._memory.device))
