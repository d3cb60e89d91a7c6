"""`BarkModel.generate(..., streamer=AudioStreamer)` of an accelerated instance."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from bark_accel.decoding.rng import after_noise, fork
from bark_accel.decoding.sampling import TokenRange
from bark_accel.hf import extract
from bark_accel.hf.compat import run_with_loop
from bark_accel.hf.configs import GenerationConfigs
from bark_accel.hf.presets import presets_of
from bark_accel.report import Fallback, FallbackKind
from bark_accel.stages.coarse import row_lengths, token_ranges
from bark_accel.stages.fine import FineSampling
from bark_accel.stages.spec import ENDED
from bark_accel.streaming.pipeline import BarkPipeline, ChunkDecoder
from bark_accel.streaming.policies import Exact, Hops, LowLatency, Policy, Preview, hop_growth
from bark_accel.streaming.streamer import AudioStreamer
from bark_accel.voices.preset import VoicePreset
from bark_accel.voices.voices import Voices

from .points import StagePatches
from .semantic import SemanticPrompt
from .token_loop import BarkTokenRules, TokenLoop, TokenTap

# Fallback kinds for which Transformers calls no streamer.
_NO_TOKENS = {FallbackKind.GENERATION_MODE, FallbackKind.EXTRA_OUTPUTS}


@dataclass(frozen=True)
class Request:
    """Checked arguments of `BarkModel.generate`, and those of each stage."""

    input_ids: Tensor
    attention_mask: Tensor | None
    voices: Voices
    configs: GenerationConfigs
    stage_kwargs: dict[str, dict[str, Any]]

    @property
    def rows(self) -> int:
        return self.input_ids.shape[0]


class AudioGeneration:
    """One utterance (or a batch of them), given out chunk by chunk."""

    def __init__(
        self, patches: StagePatches, request: Request, streamer: AudioStreamer, emit: Callable[[Tensor], None]
    ):
        """Raises `Fallback` where there can be no more than one chunk."""
        for stage in ("semantic", "coarse"):
            if request.stage_kwargs[stage].get("custom_generate") is not None:
                raise Fallback(stage, FallbackKind.ARGUMENTS, "custom_generate, a loop of the caller's own")
        self._patches = patches
        self._request = request
        self._streamer = streamer
        self._device = patches.fine.module.device
        configs, rows = request.configs, request.rows
        semantic, coarse, size = configs.semantic, configs.coarse, configs.codebook_size
        self._semantic_spec = extract.semantic_spec(semantic)
        self._coarse_spec = patches.coarse.spec(semantic, coarse, size, request.voices)
        self._fine_spec = patches.fine.spec(semantic, coarse, configs.fine, size, request.voices)
        self._semantic = _Prepared(lambda: patches.semantic.prepare(semantic, rows, self._kwargs("semantic")))
        self._coarse = _Prepared(
            lambda: patches.coarse.prepare(self._coarse_spec, coarse, rows, self._kwargs("coarse"))
        )
        self._fallbacks = [p.fallback for p in (self._semantic, self._coarse) if p.fallback is not None]
        for fallback in self._fallbacks:
            if fallback.reason.kind in _NO_TOKENS or not request.voices.shared:
                raise fallback
        codec = patches.codec.ready_stage()
        if rows > 1 and not codec.cuts_right_only:
            raise Fallback("codec", FallbackKind.CODEC_ARCHITECTURE, "rows that end at different times")
        self._decoder = ChunkDecoder(self._policy(), codec, self._coarse_spec, emit)
        self._pipeline = BarkPipeline(self._semantic_spec, self._coarse_spec, self._decoder, streamer.check)
        self.semantic_tokens: Tensor | None = None
        """[B, T], once all are there."""

    def run(self) -> None:
        """Generate and emit."""
        for fallback in self._fallbacks:
            self._patches.semantic.settings.log.note(fallback)
        if self._streamer.interleave and not self._fallbacks:
            self._run_interleaved()
            return
        tokens = self._run_semantic() if self._semantic.fallback is None else self._loop_semantic()
        self.semantic_tokens = tokens
        semantic_tokens = self._pipeline.repad(tokens)
        self._decoder.set_semantic(semantic_tokens, final=True)
        self._tell_lengths()
        if self._coarse.fallback is None:
            self._run_coarse(semantic_tokens)
        else:
            self._loop_coarse(semantic_tokens)

    def presets(self) -> list[VoicePreset] | None:
        """The voice preset of each row, once all of it was given out; None without the fine codebooks."""
        tokens, codes, lengths = self.semantic_tokens, self._decoder.codes, self._decoder.row_lengths_samples
        if self._streamer.policy == "preview" or tokens is None or lengths is None:
            return None
        if codes is None:
            codes = tokens.new_zeros(len(tokens), self._request.configs.fine.n_fine_codebooks, 0)
        return presets_of(tokens, codes, lengths, self._semantic_spec.pad_token, self._coarse_spec.num_codebooks)

    def _kwargs(self, stage: str) -> dict[str, Any]:
        return self._request.stage_kwargs[stage]

    # The compiled loops.

    def _start_semantic(self) -> Any:
        weights, spec, sampling = self._semantic.value
        request = self._request
        prompt = SemanticPrompt(request.input_ids, request.attention_mask, request.voices)
        return self._patches.semantic.started(weights, spec, sampling, prompt)

    def _start_coarse(self) -> Any:
        weights, sampling = self._coarse.value
        arguments = (weights, self._coarse_spec, sampling, self._request.rows, self._request.voices)
        return self._patches.coarse.started(*arguments, own_generator=self._streamer.interleave)

    def _run_semantic(self) -> Tensor:
        with self._start_semantic() as (stage, state):
            return self._pipeline.run_semantic(stage, state)

    def _run_coarse(self, semantic_tokens: Tensor) -> None:
        with self._start_coarse() as coarse:
            self._pipeline.run_coarse(coarse, semantic_tokens)

    def _run_interleaved(self) -> None:
        with self._start_semantic() as (semantic, state), self._start_coarse() as coarse:
            self._pipeline.run_interleaved(semantic, state, coarse)
        self.semantic_tokens = state.result()
        self._tell_lengths()

    # Transformers' own loops.

    def _loop_semantic(self) -> Tensor:
        config, spec, kwargs = self._request.configs.semantic, self._semantic_spec, self._kwargs("semantic")
        tap = TokenTap(self._streamer.check)
        rules = BarkTokenRules(
            [TokenRange(0, min(spec.vocab_size, spec.pad_token), eos=spec.pad_token)],
            end_tokens=torch.as_tensor(config.eos_token_id, dtype=torch.int64).flatten().tolist(),
            min_eos_p=kwargs.get("min_eos_p", config.min_eos_p),
            tap=tap,
        )
        request, fallback = self._request, self._semantic.fallback
        assert fallback is not None
        with self._patches.semantic.looped(fallback) as module:
            named = self._patches.semantic.by_name(config, request.voices.argument(), request.attention_mask)
            return _run_listened(module, rules, tap, request.input_ids, **named, **kwargs)

    def _loop_coarse(self, semantic_tokens: Tensor) -> None:
        configs = self._request.configs
        module = self._patches.coarse.module
        lengths = row_lengths(self._coarse_spec, semantic_tokens)
        count = itertools.count()

        def push(tokens: Tensor) -> None:
            tokens = tokens.to(self._device)
            if self._coarse_spec.rows_end:
                tokens = tokens.masked_fill(lengths <= next(count), ENDED)
            self._decoder.push(tokens)

        tap = TokenTap(self._streamer.check, push)
        rules = BarkTokenRules(token_ranges(self._coarse_spec, module.config.output_vocab_size), tap=tap)
        preset = self._request.voices.argument()
        named = self._patches.coarse.by_name(configs.semantic, configs.coarse, configs.codebook_size, preset)
        assert self._coarse.fallback is not None
        with self._patches.coarse.looped(self._coarse.fallback) as view:
            _run_listened(view, rules, tap, semantic_tokens, **named, **self._kwargs("coarse"))
        self._decoder.end()
        self._tell_lengths()

    # How chunks are made.

    def _policy(self) -> Policy:
        streamer = self._streamer
        growth = hop_growth(streamer.policy, self._device)
        hops = Hops(streamer.first_chunk_frames, growth, streamer.max_chunk_frames)
        if streamer.policy == "preview":
            return Preview(self._fine_spec, hops)
        fine = self._patches.fine.ready_stage(self._patches.fine.prepare(), self._fine_spec)
        histories = self._request.voices.fine
        temperature = self._patches.fine.settings.stock_bugs.fine_temperature(
            self._request.configs.fine, self._kwargs("fine")
        )
        sampling = FineSampling(temperature, before_pass=streamer.check)
        if streamer.policy == "exact":
            return Exact(fine, self._fine_spec, histories, sampling, self._upcoming_generator())
        generator = fork(self._device, "fine")
        return LowLatency(fine, hops, streamer.lookahead_frames, histories, sampling, generator)

    def _upcoming_generator(self) -> Callable[[int], Generator] | None:
        if self._coarse.fallback is not None or self._streamer.interleave or not self._request.voices.shared:
            return None
        _, sampling = self._coarse.value
        tokens_per_frame = self._coarse_spec.num_codebooks if sampling.do_sample else 0
        vocab_size = self._patches.coarse.module.config.output_vocab_size
        rows, device = self._request.rows, self._device
        return lambda frames: after_noise(device, rows, vocab_size, draws=frames * tokens_per_frame)

    def _tell_lengths(self) -> None:
        self._streamer.row_lengths_samples = self._decoder.row_lengths_samples


class _Prepared:
    """Result of a patch's `prepare`, or why it could not."""

    def __init__(self, prepare: Callable[[], Any]):
        self.value: Any = None
        self.fallback: Fallback | None = None
        try:
            self.value = prepare()
        except Fallback as fallback:
            self.fallback = fallback


def _run_listened(module: Any, rules: BarkTokenRules, tap: TokenTap, *args: Any, **kwargs: Any) -> Any:
    """A stage in Transformers' own loop, with an ear for its tokens."""
    loop = TokenLoop(rules, tap, kwargs.pop("logits_processor", None) or [])
    return run_with_loop(type(module).generate, module, loop, *args, **kwargs)
