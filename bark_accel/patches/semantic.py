"""`BarkSemanticModel.generate` of one module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    BarkEosPrioritizerLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from bark_accel.decoding.sampling import SamplingConfig
from bark_accel.hf import extract
from bark_accel.hf.compat import prompt_argument
from bark_accel.hf.inputs import check_input_ids, on_device, preset_on, read_histories, semantic_ids
from bark_accel.report import Fallback, FallbackKind, attempt
from bark_accel.stages.ragged import join_rows
from bark_accel.stages.semantic import SemanticStage, SemanticState
from bark_accel.stages.spec import SemanticSpec
from bark_accel.transformer.weights import TransformerWeights

from .resolve import resolve_sampling
from .stage_patch import CausalPatch

# input_ids, attention_mask, and the history: one for all rows, or one (or None) for each.
SemanticPrompt = tuple[Tensor, Tensor | None, Tensor | list[Tensor | None] | None]


class SemanticPatch(CausalPatch):
    stage = "semantic"

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        semantic_generation_config: Any = None,
        history_prompt: Any = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """See `BarkSemanticModel.generate`."""
        config = semantic_generation_config
        if config is None:
            return self.stock(input_ids, config, history_prompt, attention_mask, **kwargs)
        tokens = self._generate(input_ids, config, history_prompt, attention_mask, kwargs)
        self.settings.stock_bugs.check_ended(config, tokens, kwargs)
        return tokens

    def _generate(
        self, input_ids: Tensor, config: Any, history_prompt: Any, attention_mask: Tensor | None, kwargs: dict[str, Any]
    ) -> Tensor:
        check_input_ids(input_ids, attention_mask, config.max_input_semantic_length)
        self.settings.stock_bugs.check_text(input_ids, attention_mask, config.max_input_semantic_length)
        batch_size = input_ids.shape[0]
        history = read_histories(
            history_prompt, "semantic_prompt", batch_size, codebooks=0, vocab_size=semantic_ids(config)
        )
        prepared = attempt(lambda: self.prepare(config, batch_size, kwargs))
        if isinstance(prepared, Fallback):
            with self.looped(prepared) as module:
                return self._stock_rows(module, input_ids, config, history, attention_mask, kwargs)
        return self._run(*prepared, (input_ids, attention_mask, history), kwargs.get("streamer"))

    def _stock_rows(
        self,
        module: Any,
        input_ids: Tensor,
        config: Any,
        history: Any,
        attention_mask: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Tensor:
        """Transformers' own method of `module`; row after row where each has a voice preset of its own."""
        if not isinstance(history, list):
            preset = preset_on(self.module, semantic_prompt=history)
            return self.stock(input_ids, config, preset, attention_mask, module=module, **kwargs)
        rows = []
        for row, part in enumerate(history):
            mask = None if attention_mask is None else attention_mask[row : row + 1]
            preset = preset_on(self.module, semantic_prompt=part)
            rows.append(self.stock(input_ids[row : row + 1], config, preset, mask, module=module, **kwargs))
        return join_rows(rows, config.semantic_pad_token)

    def prepare(
        self, config: Any, rows: int, kwargs: dict[str, Any]
    ) -> tuple[TransformerWeights, SemanticSpec, SamplingConfig]:
        """Prepare a generation of `rows`; raises `Fallback` where Transformers has to run it."""
        weights, spec = self._ready_weights(), extract.semantic_spec(config)
        pad = spec.pad_token
        if config.eos_token_id != pad or pad >= self.module.config.output_vocab_size:
            detail = f"eos_token_id={config.eos_token_id}, semantic_pad_token={spec.pad_token}"
            raise Fallback(self.stage, FallbackKind.TOKEN_LAYOUT, detail)
        # A key set to None counts: BarkModel.generate always passes it, so the config's value is never used there.
        min_eos_p = kwargs.get("min_eos_p", config.min_eos_p)
        rules = [
            SuppressTokensLogitsProcessor([]),
            BarkEosPrioritizerLogitsProcessor(config.eos_token_id, min_eos_p),
        ]
        sampling = resolve_sampling(
            self.stage,
            self.module,
            torch.ones((rows, spec.prompt_tokens), dtype=torch.int, device=weights.device),
            generation_config=config,
            token_rules=rules,
            kwargs=kwargs,
            **{prompt_argument(self.module): weights.positions.new_empty(1).expand(rows, spec.prompt_tokens, 1)},
        )
        return weights, spec, replace(sampling, min_eos_p=min_eos_p or 0.0)

    def _run(
        self,
        weights: TransformerWeights,
        spec: SemanticSpec,
        sampling: SamplingConfig,
        prompt: SemanticPrompt,
        streamer: Any,
    ) -> Tensor:
        if streamer is not None:
            streamer.put(torch.ones((prompt[0].shape[0], spec.prompt_tokens), dtype=torch.int, device="cpu"))
        with self.started(weights, spec, sampling, prompt) as (stage, state):
            while not state.done:
                tokens = stage.step(state)
                if streamer is not None:
                    streamer.put(tokens.cpu())
        if streamer is not None:
            streamer.end()
        return state.result()

    @contextmanager
    def started(
        self,
        weights: TransformerWeights,
        spec: SemanticSpec,
        sampling: SamplingConfig,
        prompt: SemanticPrompt,
    ) -> Iterator[tuple[SemanticStage, SemanticState]]:
        """A generation of a prompt, and a cache for it."""
        model = self.model(weights)
        stage = SemanticStage(model, spec)
        input_ids, attention_mask, history = (on_device(weights.device, part) for part in prompt)
        histories = history if isinstance(history, list) else [history]
        rows = input_ids.shape[0]
        with (
            self.settings.pool.borrow(model.spec, rows, model.weights.cache_dtype, weights.device) as cache,
            self.token_source(model, weights, cache) as token_source,
        ):
            yield stage, stage.start(input_ids, attention_mask, histories, sampling, cache, token_source)
