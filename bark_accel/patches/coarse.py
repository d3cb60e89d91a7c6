"""`BarkCoarseModel.generate` of one module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.generation.logits_process import AlternatingCodebooksLogitsProcessor, SuppressTokensLogitsProcessor
from transformers.generation.streamers import BaseStreamer
from transformers.models.bark.generation_configuration_bark import (
    BarkCoarseGenerationConfig,
    BarkSemanticGenerationConfig,
)

from bark_accel.decoding.rng import fork
from bark_accel.decoding.sampling import SamplingConfig
from bark_accel.hf.configs import coarse_limits
from bark_accel.hf.offload import device_of
from bark_accel.hf.specs import coarse_spec
from bark_accel.hf.transformer import transformer_spec
from bark_accel.report import AccelerationError, Fallback, FallbackKind, attempt
from bark_accel.stages.coarse import CoarseStage, history_lengths, row_lengths
from bark_accel.stages.coarse_rows import CoarseRows
from bark_accel.stages.loops import NOBODY, TokenListener, run_coarse
from bark_accel.stages.ragged import join_rows
from bark_accel.stages.spec import ENDED, CoarseSpec
from bark_accel.streaming.progress import part_of
from bark_accel.transformer.weights import TransformerWeights
from bark_accel.voices.voices import Voices

from .prepared import PREPARED, prepared
from .resolve import resolve_sampling
from .stage_patch import CausalPatch
from .stage_progress import PROGRESS, counted, counting
from .token_loop import TokenTap


class CoarsePatch(CausalPatch):
    stage = "coarse"

    @torch.no_grad()
    def generate(
        self,
        semantic_output: Tensor,
        semantic_generation_config: BarkSemanticGenerationConfig | None = None,
        coarse_generation_config: BarkCoarseGenerationConfig | None = None,
        codebook_size: int = 1024,
        history_prompt: object = None,
        return_output_lengths: bool | None = None,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """See `BarkCoarseModel.generate`. Like it, replaces the padding of `semantic_output` in place.

        Where `history_prompt` is a list, or "batch_tails" is fixed, rows are filled with 0 after their own end.
        """
        progress, handed = kwargs.pop(PROGRESS, None), kwargs.pop(PREPARED, None)
        semantic, coarse = semantic_generation_config, coarse_generation_config
        if semantic is None or coarse is None:
            return self.stock(semantic_output, semantic, coarse, **kwargs)
        if semantic_output.is_floating_point() or semantic_output.ndim != 2 or semantic_output.shape[0] == 0:
            got = f"{semantic_output.dtype} {list(semantic_output.shape)}"
            raise ValueError(f"semantic_output: expected an integer tensor [batch, T], got {got}")
        if "logits_processor" in kwargs:
            # Bark passes its own, so this raises.
            return self.stock(semantic_output, semantic, coarse, codebook_size, **kwargs)
        rows, streamer = semantic_output.shape[0], kwargs.get("streamer")
        voices = Voices.read(history_prompt, rows, coarse_limits(semantic, coarse, codebook_size), several=True)
        check_coarse_streamer(streamer, voices)
        spec = self.spec(coarse_spec(semantic, coarse, codebook_size), voices)
        ready = attempt(lambda: prepared(handed, self.prepare, spec, coarse, rows, kwargs))
        padding = semantic_output == semantic.semantic_pad_token
        lengths = row_lengths(spec, semantic_output.masked_fill(padding, spec.semantic_pad_token))
        if isinstance(ready, Fallback):
            kwargs = counted(progress, self.stage, coarse, self.for_stock(spec, coarse, kwargs))
            configs = (semantic, coarse, codebook_size)
            most = sum(int(lengths[part].max()) for part, _ in voices.alike())
            with part_of(progress, self.stage, most), self.looped(ready) as module:
                tokens, lengths = self._stock_rows(module, semantic_output, configs, voices, kwargs)
            if spec.rows_end:
                ended = torch.arange(tokens.shape[1], dtype=torch.int64, device=tokens.device) >= lengths[:, None]
                tokens = tokens.masked_fill(ended, ENDED)
            return (tokens, lengths) if return_output_lengths else tokens
        weights, sampling = ready
        semantic_output.masked_fill_(padding, coarse.coarse_semantic_pad_token)
        with self.started(weights, spec, sampling, rows, voices) as run:
            run.push(semantic_output.to(weights.device, torch.int64), final=True)
            with part_of(progress, self.stage, int(lengths.max())):
                run_coarse(run, counting(progress, self.stage, _token_listener(run, streamer)))
        tokens = run.result()
        if tokens.shape[1] == 0:
            tokens = tokens.int()  # as Transformers has it
        return (tokens, lengths) if return_output_lengths else tokens

    def _stock_rows(
        self,
        module: Any,
        semantic_output: Tensor,
        configs: tuple[BarkSemanticGenerationConfig, BarkCoarseGenerationConfig, int],
        voices: Voices,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """Transformers' own method of `module`, with lengths; row by row where each has a voice preset of its own."""
        results = [
            self.stock(semantic_output[part], *configs, voice.argument(), True, module=module, **kwargs)
            for part, voice in voices.to(device_of(self.module)).alike()
        ]
        tokens, lengths = zip(*results, strict=True)
        return join_rows(list(tokens), ENDED), torch.cat(lengths)

    def prepare(
        self, spec: CoarseSpec, config: BarkCoarseGenerationConfig, rows: int, kwargs: dict[str, Any]
    ) -> tuple[TransformerWeights, SamplingConfig]:
        """Prepare a generation of `rows`.

        Raises `Fallback` where Transformers has to run it, `AccelerationError` where it cannot: windows that it lacks
        are asked for.
        """
        try:
            return self._prepare(spec, config, rows, kwargs)
        except Fallback as fallback:
            if spec.fill_positions is None:
                raise
            raise AccelerationError(fallback.reason) from None

    def _prepare(
        self, spec: CoarseSpec, config: BarkCoarseGenerationConfig, rows: int, kwargs: dict[str, Any]
    ) -> tuple[TransformerWeights, SamplingConfig]:
        weights = self.ready_weights()
        # The prompt's length and ids decide nothing that the loop can do: what depends on them (a padding mask)
        # shows in the config.
        prompt = torch.full((rows, 1), spec.infer_token, dtype=torch.int64, device=weights.device)
        sampling = resolve_sampling(
            self.stage,
            self.module,
            prompt,
            generation_config=config,
            token_rules=partial(_token_rules, spec, self.module.config.output_vocab_size),
            kwargs=kwargs,
            windows=True,
            max_new_tokens=spec.window_tokens,
        )
        if sampling.ends and sampling.processors is not None and spec.fill_positions is not None:
            raise Fallback(self.stage, FallbackKind.STOPPING_CRITERIA, sampling.processors.criteria)
        return weights, sampling

    @property
    def codes_only(self) -> bool:
        return self.settings.stock_bugs.fixes("codes_beyond_codebook")

    def spec(self, spec: CoarseSpec, voices: Voices) -> CoarseSpec:
        """Transformers' numbers, what is fixed of its bugs, and windows as `accelerate_bark` was asked for."""
        fill = transformer_spec(self.module).block_size if self.settings.long_coarse_windows else None
        return replace(spec, codes_only=self.codes_only, rows_end=self.rows_end(voices), fill_positions=fill)

    def for_stock(self, spec: CoarseSpec, config: BarkCoarseGenerationConfig, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The caller's arguments for Transformers' own loop: ids beyond the last codebook suppressed, where fixed."""
        if not spec.codes_only:
            return kwargs
        end = spec.semantic_vocab_size + spec.num_codebooks * spec.codebook_size
        given = kwargs.get("suppress_tokens", config.suppress_tokens)
        return {**kwargs, "suppress_tokens": [*(given or []), *range(end, self.module.config.output_vocab_size)]}

    @contextmanager
    def started(
        self,
        weights: TransformerWeights,
        spec: CoarseSpec,
        sampling: SamplingConfig,
        rows: int,
        voices: Voices,
        *,
        own_generator: bool = False,
    ) -> Iterator[CoarseRows]:
        """A generation of `rows` utterances, and caches for it.

        Presets of several lengths make several groups of rows, each of which draws from a generator of its own, as
        `own_generator` has it for one.
        """
        self.note_options(sampling)
        model = self.model(weights)
        stage = CoarseStage(model, spec)
        histories = voices.coarse
        # Windows end early for each row that has a voice of its own as they would for it alone.
        alone = sampling.ends and not voices.shared
        groups = [[row] for row in range(rows)] if alone else _groups_of_rows(spec, rows, histories)
        states = []
        with ExitStack() as held:
            for index, members in enumerate(groups):
                part = histories if voices.shared else [histories[row] for row in members]
                cache = held.enter_context(
                    self.settings.pool.borrow(model.spec, len(members), model.cache_dtype, weights.device)
                )
                token_source = held.enter_context(self.token_source(model, weights, cache, sampling))
                state = stage.start(len(members), part, sampling, cache, token_source)
                if own_generator or len(groups) > 1:
                    state.sampler.generator = fork(weights.device, f"coarse {index}" if index else "coarse")
                states.append((members, state))
            yield CoarseRows(stage, states, spec.semantic_pad_token)


class _BeyondTheCodes(SuppressTokensLogitsProcessor):
    """Bans ids beyond the last codebook: a class of its own, as Transformers keeps one processor of each."""


def _token_rules(spec: CoarseSpec, vocab_size: int, prompt: Tensor) -> list[LogitsProcessor]:
    """Bark's own processor, as `BarkCoarseModel.generate` makes it, and what is fixed of it."""
    length, first = prompt.shape[1], spec.semantic_vocab_size
    rules: list[LogitsProcessor] = [AlternatingCodebooksLogitsProcessor(length, first, spec.codebook_size)]
    if spec.codes_only:
        beyond = range(first + spec.num_codebooks * spec.codebook_size, vocab_size)
        device: Any = prompt.device
        rules.append(_BeyondTheCodes(beyond, device))
    return rules


def _groups_of_rows(spec: CoarseSpec, rows: int, histories: list[tuple[Tensor, Tensor] | None]) -> list[list[int]]:
    """The rows whose histories have equal lengths; all where they share one."""
    if len(histories) == 1:
        return [list(range(rows))]
    groups: dict[tuple[int, int], list[int]] = {}
    for row, part in enumerate(histories):
        groups.setdefault(history_lengths(spec, part), []).append(row)
    return list(groups.values())


def _token_listener(run: CoarseRows, streamer: BaseStreamer | None) -> TokenListener:
    """A listener that gives a streamer what Transformers would: of each window its prompt, its tokens and its end."""
    if streamer is None:
        return NOBODY

    def put(tokens: Tensor) -> None:
        prompt = run.prompt_ids()
        if prompt is not None:
            streamer.put(prompt.cpu())
        streamer.put(tokens.cpu())
        if run.window_ended:
            streamer.end()

    return TokenListener(on_token=put)


def check_coarse_streamer(streamer: BaseStreamer | None, voices: Voices) -> None:
    """Raise `ValueError` for a streamer of coarse tokens where each row has a voice, and so windows, of its own.

    A `TokenTap` only asks whether to go on.
    """
    if streamer is not None and not isinstance(streamer, TokenTap) and not voices.shared:
        raise ValueError("coarse streamer: expected none with a list of voice presets; semantic_streamer= works")
