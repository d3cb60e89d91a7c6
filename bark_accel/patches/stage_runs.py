"""Two ways to run a causal stage for a listener: in our own loop, or in Transformers'."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Generator, Tensor

from bark_accel.decoding.rng import after_noise
from bark_accel.hf.offload import device_of
from bark_accel.report import Fallback, attempt
from bark_accel.stages.coarse import row_lengths
from bark_accel.stages.coarse_rows import CoarseRows
from bark_accel.stages.loops import TokenListener, run_coarse, run_semantic
from bark_accel.stages.semantic import SemanticStage, SemanticState
from bark_accel.stages.spec import ENDED, CoarseSpec

from .points import StagePatches
from .request import Request
from .semantic import SemanticPrompt
from .token_loop import TokenTap, run_listened


class StageRun(Protocol):
    """Runs either causal stage of one request."""

    def semantic(self, listener: TokenListener) -> Tensor:
        """Semantic tokens [B, T] int64, as the semantic stage pads them."""
        ...

    def coarse(self, semantic_tokens: Tensor, listener: TokenListener) -> None:
        """Hand the coarse tokens of semantic tokens [B, T] to the listener; these are padded as the stage has it."""
        ...


class CompiledRun:
    """Our own loops over compiled steps.

    Parameters
    ----------
    own_generators : bool
        The coarse stage draws from a generator of its own.
    """

    def __init__(self, patches: StagePatches, request: Request, spec: CoarseSpec, *, own_generators: bool):
        self._patches = patches
        self._request = request
        self._spec = spec
        self._own_generators = own_generators
        configs, rows = request.configs, request.rows
        semantic, coarse = request.arguments("semantic"), request.arguments("coarse")
        self._semantic = attempt(
            lambda: request.once("semantic", lambda: patches.semantic.prepare(configs.semantic, rows, semantic))
        )
        self._coarse = attempt(
            lambda: request.once("coarse", lambda: patches.coarse.prepare(spec, configs.coarse, rows, coarse))
        )

    @property
    def fallbacks(self) -> dict[str, Fallback]:
        """Why a stage cannot run here, by stage."""
        prepared = {"semantic": self._semantic, "coarse": self._coarse}
        return {stage: result for stage, result in prepared.items() if isinstance(result, Fallback)}

    @property
    def greedy(self) -> bool:
        """Tell whether neither stage draws or calls a caller's code: the order of their steps changes no token."""
        prepared = (self._semantic, self._coarse)
        return not any(isinstance(p, Fallback) or p[-1].do_sample or p[-1].calls_others for p in prepared)

    def semantic(self, listener: TokenListener) -> Tensor:
        with self.started_semantic() as (stage, state):
            return run_semantic(stage, state, listener)

    def coarse(self, semantic_tokens: Tensor, listener: TokenListener) -> None:
        with self.started_coarse() as rows:
            rows.push(semantic_tokens, final=True)
            run_coarse(rows, listener)

    def started_semantic(self) -> AbstractContextManager[tuple[SemanticStage, SemanticState]]:
        """A generation of the request's texts."""
        assert not isinstance(self._semantic, Fallback)
        request = self._request
        prompt = SemanticPrompt(request.input_ids, request.attention_mask, request.voices)
        return self._patches.semantic.started(*self._semantic, prompt)

    def started_coarse(self) -> AbstractContextManager[CoarseRows]:
        """A generation that waits for semantic tokens."""
        assert not isinstance(self._coarse, Fallback)
        weights, sampling = self._coarse
        rows, voices = self._request.rows, self._request.voices
        return self._patches.coarse.started(
            weights, self._spec, sampling, rows, voices, own_generator=self._own_generators
        )

    def upcoming_generator(self) -> Callable[[int], Generator] | None:
        """Tells, for a number of frames, the state of the device's generator once they are drawn; None: unknown."""
        if isinstance(self._coarse, Fallback) or self._own_generators or not self._request.voices.shared:
            return None
        weights, sampling = self._coarse
        if sampling.calls_others:
            return None
        tokens_per_frame = self._spec.num_codebooks if sampling.do_sample else 0
        vocab_size = self._patches.coarse.module.config.output_vocab_size
        rows = self._request.rows
        return lambda frames: after_noise(weights.device, rows, vocab_size, draws=frames * tokens_per_frame)


class LoopRun:
    """Transformers' own loops, listened to, on views of the modules with our steps where these can be had.

    Parameters
    ----------
    fallbacks : dict of Fallback
        Why they run, by stage.
    """

    def __init__(self, patches: StagePatches, request: Request, spec: CoarseSpec, fallbacks: dict[str, Fallback]):
        self._patches = patches
        self._request = request
        self._spec = spec
        self._fallbacks = fallbacks

    def semantic(self, listener: TokenListener) -> Tensor:
        request, patch = self._request, self._patches.semantic
        tap = TokenTap(listener.before_token, listener.on_token)
        named = patch.by_name(request.configs.semantic, request.voices.argument(), request.attention_mask)
        with patch.looped(self._fallbacks["semantic"]) as module:
            return run_listened(module, tap, request.input_ids, **named, **request.arguments("semantic"))

    def coarse(self, semantic_tokens: Tensor, listener: TokenListener) -> None:
        request, patch = self._request, self._patches.coarse
        configs, device = request.configs, device_of(patch.module)
        lengths = row_lengths(self._spec, semantic_tokens)
        count = itertools.count()

        def hear(tokens: Tensor) -> None:
            tokens = tokens.to(device)
            if self._spec.rows_end:
                tokens = tokens.masked_fill(lengths <= next(count), ENDED)
            listener.on_token(tokens)

        tap = TokenTap(listener.before_token, hear)
        named = patch.by_name(configs.semantic, configs.coarse, configs.codebook_size, request.voices.argument())
        arguments = patch.for_stock(self._spec, configs.coarse, request.arguments("coarse"))
        with patch.looped(self._fallbacks["coarse"]) as module:
            run_listened(module, tap, semantic_tokens, **named, **arguments)
