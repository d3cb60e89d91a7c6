"""A request's way through the stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bark_accel.decoding.sampling import drawing
from bark_accel.decoding.shared_draws import Draw
from bark_accel.ops import checks
from bark_accel.ops.sample_checks import raise_bad_rows
from bark_accel.stages.coarse import CoarseStage, CoarseState
from bark_accel.stages.semantic import SemanticStage, SemanticState
from bark_accel.streaming.pipeline import ChunkDecoder
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCache

from .request import SpeechRequest
from .slots import Slot, Step


@dataclass(frozen=True)
class Plan:
    """A request of one row, as a model has prepared it.

    `start_semantic` and `start_coarse` start a stage on an empty cache; `repad` pads semantic tokens [1, T] as the
    coarse stage has it; `decoder` makes audio of coarse tokens and emits it; `preset` makes a voice preset of semantic
    tokens and of what was decoded.
    """

    semantic: SemanticStage
    coarse: CoarseStage
    start_semantic: Callable[[SemanticStage, KVCache], SemanticState]
    start_coarse: Callable[[CoarseStage, KVCache], CoarseState]
    repad: Callable[[Tensor], Tensor]
    decoder: Callable[[Callable[[Tensor], None]], ChunkDecoder]
    preset: Callable[[Tensor, ChunkDecoder], dict[str, np.ndarray] | None]


class Row:
    """One request on its way: `step` is what it has to feed next, None before and after each of the two causal stages.

    `is_between`: it has its semantic tokens, and no slot yet for the coarse stage.
    `check_weights` raises where audio that was made would be of changed weights.
    """

    def __init__(self, plan: Plan, request: SpeechRequest, check_weights: Callable[[], None]):
        self.request = request
        self.step: Step | None = None
        self.is_between = False
        self._plan = plan
        self._slot: Slot | None = None
        self._semantic_tokens: Tensor | None = None
        self._semantic: SemanticState | None = None
        self._coarse: CoarseState | None = None
        self._unread: list[Tensor] = []
        """Coarse tokens [1] on a device, where a draw waits for nobody: some may say that they could not be drawn."""
        self._decoder = plan.decoder(self._deliver)
        self._check_weights = check_weights

    def start(self, slot: Slot) -> None:
        """Begin the semantic stage, or the coarse one after it; keeps the slot up to its end."""
        self._slot, self.is_between = slot, False
        if self._semantic_tokens is not None:
            self._start_coarse(slot, self._semantic_tokens)
            return
        self.request.begin()
        self.request.stage = "semantic"
        stage = self._plan.semantic
        self._semantic = self._plan.start_semantic(stage, slot.cache(stage.model))
        self.step = self._step(self._semantic)

    @property
    def is_read(self) -> bool:
        """Tell whether `note` looks at the token: the semantic stage ends by one."""
        return self._coarse is None

    def draw(self, logits: Tensor) -> Tensor:
        """Draw the token [1] int64 that follows what was fed, on the device of the logits."""
        if self._coarse is not None:
            return self._plan.coarse.draw(self._coarse, logits)
        assert self._semantic is not None
        return self._plan.semantic.draw(self._semantic, logits)

    @property
    def next_draw(self) -> Draw:
        """The sampler and the ids of the next `draw`, which other rows may share."""
        if self._coarse is not None:
            return Draw(self._coarse.sampler, self._plan.coarse.allowed(self._coarse))
        assert self._semantic is not None
        return Draw(self._semantic.sampler, self._plan.semantic.allowed(self._semantic))

    def note(self, drawn: Tensor, token: Tensor) -> None:
        """Go on to the next step, or the next stage, by what was drawn; `token` is on the host where it `is_read`.

        Raises as a draw does, for a token that could not be drawn; of the coarse stage, where a prompt would have it
        next, and else `decode` does.
        """
        if self._coarse is not None:
            if not checks.on_host(drawn):
                self._unread.append(drawn)
            self._decoder.feed(self._plan.coarse.note(self._coarse, drawn))
            self._next_coarse(self._coarse)
        elif self._semantic is not None:
            if token is not drawn:
                _raise_undrawn("semantic", self._plan.semantic.model, token)
            self._plan.semantic.note(self._semantic, drawn, token)
            self._next_semantic(self._semantic)

    def run_ahead(self) -> None:
        """Do the same by the step's source, without what was to be fed."""
        if self._coarse is not None:
            self._decoder.feed(self._plan.coarse.step(self._coarse))
            self._next_coarse(self._coarse)
        elif self._semantic is not None:
            self._plan.semantic.step(self._semantic)
            self._next_semantic(self._semantic)

    def leave(self) -> None:
        """Give up the slot; nothing is fed without one."""
        self.step = self._semantic = self._coarse = None
        if self._slot is not None:
            self._slot.give_back()
            self._slot = None

    def _next_semantic(self, state: SemanticState) -> None:
        if not state.done:
            self.step = self._step(state)
            return
        self._semantic_tokens = state.result()
        self._decoder.set_semantic(self._plan.repad(self._semantic_tokens), final=True)
        self.request.stage = "coarse"
        self.leave()
        self.is_between = True

    def _start_coarse(self, slot: Slot, semantic_tokens: Tensor) -> None:
        stage = self._plan.coarse
        self._coarse = self._plan.start_coarse(stage, slot.cache(stage.model))
        stage.push(self._coarse, self._plan.repad(semantic_tokens), final=True)
        self._next_coarse(self._coarse)

    def _next_coarse(self, state: CoarseState) -> None:
        if self._plan.coarse.ready(state):
            self.step = self._step(state)
            # A prompt's ids are looked up unchecked: a negative one would end all work on the device.
            if not self.step.feed.is_step:
                self._check_drawn()
        else:
            self.request.stage = "fine"
            self.leave()

    def _deliver(self, chunk: Tensor) -> None:
        self._check_weights()
        self.request.deliver(chunk)

    def _step(self, state: SemanticState | CoarseState) -> Step:
        assert self._slot is not None
        if isinstance(state, SemanticState):
            model, feed, begun = self._plan.semantic.model, self._plan.semantic.feed(state), state.tokens
        else:
            model, feed, begun = self._plan.coarse.model, self._plan.coarse.feed(state), state.window
        return Step(self._slot, model, state.cache, feed, state.token_source if begun else None)

    @property
    def decodes(self) -> bool:
        """Tell whether the fine stage or the codec has work to do."""
        return self._decoder.ready

    @property
    def done(self) -> bool:
        """Tell whether all audio was delivered."""
        return self._decoder.done

    def decode(self) -> None:
        """Compute one pass of the fine stage, and decode the chunk that it completes."""
        self._check_drawn()
        self._decoder.advance()

    def _check_drawn(self) -> None:
        """Read the tokens that nobody has read, and raise for one that could not be drawn."""
        unread, self._unread = self._unread, []
        if unread:
            _raise_undrawn("coarse", self._plan.coarse.model, torch.cat(unread).cpu())

    def finish(self) -> None:
        """Tell the request that all is there."""
        assert self._semantic_tokens is not None
        self.request.finish(self._plan.preset(self._semantic_tokens, self._decoder))


def _raise_undrawn(stage: str, model: CausalModel, tokens: Tensor) -> None:
    """Raise for the first of tokens [N] on the host that could not be drawn, as a draw of one row does."""
    with drawing(stage, model.weights.cache_dtype):
        raise_bad_rows("fused_multinomial", tokens[tokens < 0][:1])
