"""The methods that replace Transformers' on one model instance.

Each hook is a bound method of a small object that owns one module, so that a patched module still pickles and
deep-copies, and the copy is patched too. Names and signatures are those of the methods they replace.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    AlternatingCodebooksLogitsProcessor,
    BarkEosPrioritizerLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from bark_accel.report import FallbackKind
from bark_accel.sampling import SamplingConfig
from bark_accel.spec import CoarseSpec, FineSpec, SemanticSpec
from bark_accel.stages.coarse import CoarseStage, CoarseState
from bark_accel.stages.codec import CodecStage
from bark_accel.stages.fine import FineSampling, FineStage
from bark_accel.stages.semantic import SemanticStage, SemanticState
from bark_accel.weights import TransformerWeights

from . import extract
from .compat import prompt_argument
from .fallback import Fallback
from .hook import CausalHook, Hook
from .inputs import check_input_ids, read_history
from .resolve import resolve_sampling


class SemanticHook(CausalHook):
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
        check_input_ids(input_ids, attention_mask, config.max_input_semantic_length)
        self.settings.traps.check_text(input_ids, attention_mask, config.max_input_semantic_length)
        history = read_history(history_prompt, "semantic_prompt", rows=0, ids=semantic_ids(config))
        try:
            weights, spec, sampling = self.prepare(config, input_ids.shape[0], kwargs)
        except Fallback as fallback:
            self.settings.log.record(fallback.reason)
            return self.stock(
                input_ids, config, preset_on(self.module, semantic_prompt=history), attention_mask, **kwargs
            )
        return self._run(weights, spec, sampling, (input_ids, attention_mask, history), kwargs.get("streamer"))

    def prepare(
        self, config: Any, rows: int, kwargs: dict[str, Any]
    ) -> tuple[TransformerWeights, SemanticSpec, SamplingConfig]:
        """What a generation of `rows` needs; raises `Fallback` where Transformers has to run it."""
        weights, spec = self._ready_weights(), extract.semantic_spec(config)
        pad = spec.pad_token
        if not isinstance(pad, int) or config.eos_token_id != pad or pad >= self.module.config.output_vocab_size:
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
        prompt: tuple[Tensor, Tensor | None, Tensor | None],
        streamer: Any,
    ) -> Tensor:
        if streamer is not None:
            streamer.put(torch.ones((prompt[0].shape[0], spec.prompt_tokens), dtype=torch.int))
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
        prompt: tuple[Tensor, Tensor | None, Tensor | None],
    ) -> Iterator[tuple[SemanticStage, SemanticState]]:
        """A generation of (input_ids, attention_mask, history), and a cache for it."""
        model = self.model(weights)
        stage = SemanticStage(model, spec)
        input_ids = prompt[0].to(weights.device)
        attention_mask, history = (None if t is None else t.to(weights.device) for t in prompt[1:])
        rows = input_ids.shape[0]
        with (
            self.settings.pool.borrow(model.spec, rows, model.weights.cache_dtype, weights.device) as cache,
            self.lookahead(model, weights, cache) as lookahead,
        ):
            yield stage, stage.start(input_ids, attention_mask, history, sampling, cache, lookahead)


class CoarseHook(CausalHook):
    stage = "coarse"

    @torch.no_grad()
    def generate(
        self,
        semantic_output: Tensor,
        semantic_generation_config: Any = None,
        coarse_generation_config: Any = None,
        codebook_size: int = 1024,
        history_prompt: Any = None,
        return_output_lengths: bool | None = None,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """See `BarkCoarseModel.generate`. Like it, replaces the padding of `semantic_output` in place."""
        semantic, coarse = semantic_generation_config, coarse_generation_config
        if semantic is None or coarse is None:
            return self.stock(semantic_output, semantic, coarse, **kwargs)
        history = coarse_history(history_prompt, semantic, coarse, codebook_size)
        try:
            weights, sampling = self.prepare(semantic, coarse, codebook_size, semantic_output.shape[0], kwargs)
        except Fallback as fallback:
            self.settings.log.record(fallback.reason)
            past = history or (None, None)
            prompt = preset_on(self.module, semantic_prompt=past[0], coarse_prompt=past[1])
            if self.codes_only:
                kwargs = {**kwargs, "suppress_tokens": self._suppressed(semantic, coarse, codebook_size, kwargs)}
            return self.stock(semantic_output, semantic, coarse, codebook_size, prompt, return_output_lengths, **kwargs)
        semantic_output.masked_fill_(semantic_output == semantic.semantic_pad_token, coarse.coarse_semantic_pad_token)
        spec = self.spec(semantic, coarse, codebook_size)
        with self.started(weights, spec, sampling, semantic_output.shape[0], history) as (stage, state):
            stage.push(state, semantic_output.to(weights.device, torch.int64), final=True)
            _run_coarse(stage, state, kwargs.get("streamer"))
        lengths = stage.row_lengths(semantic_output)
        return (state.result(), lengths) if return_output_lengths else state.result()

    def prepare(
        self, semantic: Any, coarse: Any, codebook_size: int, rows: int, kwargs: dict[str, Any]
    ) -> tuple[TransformerWeights, SamplingConfig]:
        """What a generation of `rows` needs; raises `Fallback` where Transformers has to run it."""
        weights = self._ready_weights()
        # The prompt's length and ids decide nothing that the loop can do: what depends on them (a padding mask)
        # shows in the config.
        prompt = torch.full((rows, 1), coarse.coarse_infer_token, device=weights.device)
        rules = [AlternatingCodebooksLogitsProcessor(1, semantic.semantic_vocab_size, codebook_size)]
        sampling = resolve_sampling(
            self.stage,
            self.module,
            prompt,
            generation_config=coarse,
            token_rules=rules,
            kwargs=kwargs,
            max_new_tokens=coarse.sliding_window_len,
        )
        if sampling.stop_tokens or sampling.pad_token is not None:
            detail = f"eos_token_id={sampling.stop_tokens}, pad_token_id={sampling.pad_token}, expected none"
            raise Fallback(self.stage, FallbackKind.TOKEN_LAYOUT, detail)
        return weights, sampling

    @property
    def codes_only(self) -> bool:
        return self.settings.traps.fixes("codes_beyond_codebook")

    def spec(self, semantic: Any, coarse: Any, codebook_size: int) -> CoarseSpec:
        return replace(extract.coarse_spec(semantic, coarse, codebook_size), codes_only=self.codes_only)

    def _suppressed(self, semantic: Any, coarse: Any, codebook_size: int, kwargs: dict[str, Any]) -> list[int]:
        """The caller's suppressed tokens and the ids beyond the last codebook, for Transformers' own loop."""
        end = semantic.semantic_vocab_size + coarse.n_coarse_codebooks * codebook_size
        given = kwargs.get("suppress_tokens", coarse.suppress_tokens)
        return [*(given or []), *range(end, self.module.config.output_vocab_size)]

    @contextmanager
    def started(
        self,
        weights: TransformerWeights,
        spec: CoarseSpec,
        sampling: SamplingConfig,
        rows: int,
        history: tuple[Tensor, Tensor] | None,
    ) -> Iterator[tuple[CoarseStage, CoarseState]]:
        """A generation of `rows` utterances, and a cache for it."""
        model = self.model(weights)
        stage = CoarseStage(model, spec)
        with (
            self.settings.pool.borrow(model.spec, rows, model.weights.cache_dtype, weights.device) as cache,
            self.lookahead(model, weights, cache) as lookahead,
        ):
            yield stage, stage.start(rows, history, sampling, cache, lookahead)


def _run_coarse(stage: CoarseStage, state: CoarseState, streamer: Any) -> None:
    while stage.ready(state):
        tokens = stage.step(state)
        if streamer is None:
            continue
        if len(state.window) == 1:
            streamer.put(stage.prompt_ids(state).cpu())
        streamer.put(tokens.cpu())
        if len(state.window) == state.window_tokens:
            streamer.end()


class FineHook(Hook):
    stage = "fine"

    @torch.no_grad()
    def generate(
        self,
        coarse_output: Tensor,
        semantic_generation_config: Any = None,
        coarse_generation_config: Any = None,
        fine_generation_config: Any = None,
        codebook_size: int = 1024,
        history_prompt: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """See `BarkFineModel.generate`. No frames in give no frames out, where Transformers fails."""
        semantic, coarse, fine = semantic_generation_config, coarse_generation_config, fine_generation_config
        if semantic is None or coarse is None or fine is None:
            return self.stock(coarse_output, semantic, coarse, fine, **kwargs)
        temperature = self.settings.traps.fine_temperature(fine, kwargs)
        history = read_history(history_prompt, "fine_prompt", rows=fine.n_fine_codebooks, ids=codebook_size)
        if coarse_output.shape[1] == 0:
            return coarse_output.new_zeros(coarse_output.shape[0], fine.n_fine_codebooks, 0)
        try:
            weights = self.prepare()
        except Fallback as fallback:
            self.settings.log.record(fallback.reason)
            prompt = preset_on(self.module, fine_prompt=history)
            kwargs = {**kwargs, "temperature": temperature}
            return self.stock(coarse_output, semantic, coarse, fine, codebook_size, prompt, **kwargs)
        stage = self.ready_stage(weights, extract.fine_spec(semantic, coarse, fine, codebook_size))
        return stage.run(coarse_output.to(weights.device), history, FineSampling(temperature))

    def prepare(self) -> TransformerWeights:
        """What a generation needs; raises `Fallback` where Transformers has to run it."""
        return self._ready_weights()

    def ready_stage(self, weights: TransformerWeights, spec: FineSpec) -> FineStage:
        """The stage on the weights that `prepare` gave."""
        return FineStage(self.converted(weights), extract.transformer_spec(self.module), spec, self.ops(weights.device))


class CodecHook(Hook):
    """Decodes for `BarkModel.codec_decode`; owns the codec."""

    stage = "codec"

    def ops_name(self, device: torch.device) -> str:
        """The codec runs on torch's own matrix products."""
        return "torch"

    def precision_name(self, dtype: torch.dtype) -> str:
        """The codec computes in float32."""
        return "float32"

    def _read_weights(self) -> Any:
        return extract.codec_weights(self.module)

    def ready_stage(self) -> CodecStage:
        """A stage with the codec's weights as they are now; raises `Fallback` where they cannot be used."""
        weights = self._ready_weights()
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.module.parameters()):
            raise Fallback(self.stage, FallbackKind.GRADIENTS, "codec_decode outside torch.no_grad()")
        return CodecStage(weights)


def coarse_history(history: Any, semantic: Any, coarse: Any, codebook_size: int) -> tuple[Tensor, Tensor] | None:
    semantic_part = read_history(history, "semantic_prompt", rows=0, ids=semantic_ids(semantic))
    coarse_part = read_history(history, "coarse_prompt", rows=coarse.n_coarse_codebooks, ids=codebook_size)
    return None if semantic_part is None or coarse_part is None else (semantic_part, coarse_part)


def semantic_ids(config: Any) -> int:
    """Exclusive bound of the ids in a semantic history: a preset made of generated tokens may end in padding."""
    return max(config.semantic_vocab_size, config.semantic_pad_token + 1)


def preset_on(module: Any, **parts: Tensor | None) -> dict[str, Tensor] | None:
    """A voice preset for Transformers' own method, on the module's device."""
    return {key: part.to(module.device) for key, part in parts.items() if part is not None} or None
