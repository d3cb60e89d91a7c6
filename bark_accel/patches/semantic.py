"""`BarkSemanticModel.generate` of one module."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.generation.logits_process import (
    BarkEosPrioritizerLogitsProcessor,
    SuppressTokensLogitsProcessor,
)
from transformers.generation.streamers import BaseStreamer
from transformers.models.bark.generation_configuration_bark import BarkSemanticGenerationConfig

from bark_accel.decoding.sampling import SamplingConfig
from bark_accel.hf.compat import prompt_argument
from bark_accel.hf.configs import semantic_limits
from bark_accel.hf.inputs import check_texts
from bark_accel.hf.offload import device_of
from bark_accel.hf.specs import semantic_spec
from bark_accel.report import Fallback, FallbackKind, attempt
from bark_accel.stages.loops import NOBODY, TokenListener, run_semantic
from bark_accel.stages.ragged import join_rows
from bark_accel.stages.semantic import SemanticStage, SemanticState
from bark_accel.stages.spec import SemanticSpec
from bark_accel.streaming.progress import part_of
from bark_accel.transformer.weights import TransformerWeights
from bark_accel.voices.voices import Voices

from .prepared import PREPARED, Prepared, prepared
from .resolve import resolve_sampling
from .stage_patch import CausalPatch
from .stage_progress import PROGRESS, counted, counting, longest

Ready = tuple[TransformerWeights, SemanticSpec, SamplingConfig]


@dataclass(frozen=True)
class SemanticPrompt:
    """Texts [B, max_input_tokens], 0 in their mask where they are padded, and their voices."""

    input_ids: Tensor
    attention_mask: Tensor | None
    voices: Voices

    def to(self, device: torch.device) -> SemanticPrompt:
        """The same on a device."""
        mask = None if self.attention_mask is None else self.attention_mask.to(device)
        return SemanticPrompt(self.input_ids.to(device), mask, self.voices.to(device))


class SemanticPatch(CausalPatch):
    stage = "semantic"

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        semantic_generation_config: BarkSemanticGenerationConfig | None = None,
        history_prompt: object = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """See `BarkSemanticModel.generate`."""
        config, handed = semantic_generation_config, kwargs.pop(PREPARED, None)
        if config is None:
            return self.stock(input_ids, config, history_prompt, attention_mask, **kwargs)
        tokens = self._generate(input_ids, config, history_prompt, attention_mask, handed, kwargs)
        self.settings.stock_bugs.check_ended(config, tokens, kwargs)
        return tokens

    def _generate(
        self,
        input_ids: Tensor,
        config: BarkSemanticGenerationConfig,
        history_prompt: object,
        attention_mask: Tensor | None,
        handed: Prepared[Ready] | None,
        kwargs: dict[str, Any],
    ) -> Tensor:
        progress = kwargs.pop(PROGRESS, None)
        check_texts(self.module, config, input_ids, attention_mask)
        self.settings.stock_bugs.check_text(input_ids, attention_mask, config.max_input_semantic_length)
        if "logits_processor" in kwargs:
            return self.stock(
                input_ids, config, history_prompt, attention_mask, **kwargs
            )  # it raises: Bark passes its own
        batch_size = input_ids.shape[0]
        voices = Voices.read(history_prompt, batch_size, semantic_limits(config))
        ready = attempt(lambda: prepared(handed, self.prepare, config, batch_size, kwargs))
        runs = len([*voices.alike()]) if isinstance(ready, Fallback) else 1
        with part_of(progress, self.stage, runs * longest(config, kwargs)):
            if isinstance(ready, Fallback):
                kwargs = counted(progress, self.stage, config, kwargs)
                with self.looped(ready) as module:
                    return self._stock_rows(module, input_ids, config, voices, attention_mask, kwargs)
            listener = counting(progress, self.stage, _token_listener(kwargs.get("streamer")))
            prompt = SemanticPrompt(input_ids, attention_mask, voices)
            return self._run(*ready, prompt, kwargs.get("streamer"), listener)

    def _stock_rows(
        self,
        module: Any,
        input_ids: Tensor,
        config: BarkSemanticGenerationConfig,
        voices: Voices,
        attention_mask: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Tensor:
        """Transformers' own method of `module`; row after row where each has a voice preset of its own."""
        rows = []
        for part, voice in voices.to(device_of(self.module)).alike():
            mask = None if attention_mask is None else attention_mask[part]
            rows.append(self.stock(input_ids[part], config, voice.argument(), mask, module=module, **kwargs))
        return join_rows(rows, config.semantic_pad_token)

    def prepare(self, config: BarkSemanticGenerationConfig, rows: int, kwargs: dict[str, Any]) -> Ready:
        """Prepare a generation of `rows`; raises `Fallback` where Transformers has to run it."""
        weights, spec = self.ready_weights(), semantic_spec(config)
        pad = spec.pad_token
        if config.eos_token_id != pad or pad >= self.module.config.output_vocab_size:
            detail = f"eos_token_id={config.eos_token_id}, semantic_pad_token={spec.pad_token}"
            raise Fallback(self.stage, FallbackKind.TOKEN_LAYOUT, detail)
        # A key set to None counts: BarkModel.generate always passes it, so the config's value is never used there.
        min_eos_p = kwargs.get("min_eos_p", config.min_eos_p)
        prompt = weights.positions.new_empty(1).expand(rows, spec.prompt_tokens, 1)
        embeddings: dict[str, Any] = {prompt_argument(self.module): prompt}
        sampling = resolve_sampling(
            self.stage,
            self.module,
            torch.ones((rows, spec.prompt_tokens), dtype=torch.int, device=weights.device),
            generation_config=config,
            token_rules=partial(_token_rules, spec, self.module.config.output_vocab_size, min_eos_p),
            kwargs=kwargs,
            **embeddings,
        )
        has_rules = sampling.processors is not None and sampling.processors.has_rules
        ours = not has_rules and min_eos_p and not math.isnan(min_eos_p)  # no probability is above NaN
        return weights, spec, replace(sampling, min_eos_p=min_eos_p if ours else 0.0)

    def _run(
        self,
        weights: TransformerWeights,
        spec: SemanticSpec,
        sampling: SamplingConfig,
        prompt: SemanticPrompt,
        streamer: BaseStreamer | None,
        listener: TokenListener,
    ) -> Tensor:
        if streamer is not None:
            rows = prompt.input_ids.shape[0]
            streamer.put(torch.ones((rows, spec.prompt_tokens), dtype=torch.int, device="cpu"))
        with self.started(weights, spec, sampling, prompt) as (stage, state):
            tokens = run_semantic(stage, state, listener)
        if streamer is not None:
            streamer.end()
        return tokens

    @contextmanager
    def started(
        self,
        weights: TransformerWeights,
        spec: SemanticSpec,
        sampling: SamplingConfig,
        prompt: SemanticPrompt,
    ) -> Iterator[tuple[SemanticStage, SemanticState]]:
        """A generation of a prompt, and a cache for it."""
        self.note_options(sampling)
        model = self.model(weights)
        stage = SemanticStage(model, spec)
        prompt = prompt.to(weights.device)
        rows = prompt.input_ids.shape[0]
        with (
            self.settings.pool.borrow(model.spec, rows, model.cache_dtype, weights.device) as cache,
            self.token_source(model, weights, cache, sampling) as token_source,
        ):
            yield (
                stage,
                stage.start(
                    prompt.input_ids, prompt.attention_mask, prompt.voices.semantic, sampling, cache, token_source
                ),
            )


def _token_listener(streamer: BaseStreamer | None) -> TokenListener:
    """A listener that gives a streamer the tokens."""
    return NOBODY if streamer is None else TokenListener(on_token=lambda tokens: streamer.put(tokens.cpu()))


def _token_rules(spec: SemanticSpec, vocab_size: int, min_eos_p: Any, prompt: Tensor) -> list[LogitsProcessor]:
    """Bark's own processors, as `BarkSemanticModel.generate` makes them."""
    device: Any = prompt.device
    suppressed = [*range(spec.vocab_size, spec.pad_token), *range(spec.pad_token + 1, vocab_size)]
    return [
        SuppressTokensLogitsProcessor(suppressed, device),
        BarkEosPrioritizerLogitsProcessor(spec.pad_token, min_eos_p, device),
    ]
