"""A request of an engine, prepared: options, specs and histories of one row, on the engine's own models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Generator, Tensor

from bark_accel.decoding.rng import after_noise
from bark_accel.decoding.speculation import Draft, Speculation
from bark_accel.engine.errors import NotShared
from bark_accel.engine.row import Plan
from bark_accel.hf.presets import presets_of
from bark_accel.stages.coarse import CoarseStage, CoarseState
from bark_accel.stages.codec import CodecStage
from bark_accel.stages.fine import FineStage
from bark_accel.stages.fine_sampling import FineSampling
from bark_accel.stages.semantic import SemanticStage, SemanticState
from bark_accel.streaming.pipeline import ChunkDecoder, repad
from bark_accel.streaming.policies import Chunking, Policy, Preview, Whole, make_policy
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCache
from bark_accel.transformer.weights import TransformerWeights
from bark_accel.voices.preset import VoicePreset

from .points import StagePatches
from .request import Request
from .semantic import SemanticPrompt
from .stream_plan import stream_plan


@dataclass(frozen=True)
class EngineModels:
    """The models that all requests of an engine run on, and those that draft for a row alone, where drafts are on."""

    semantic: CausalModel
    semantic_draft: Draft | None
    coarse: CausalModel
    coarse_draft: Draft | None
    fine: TransformerWeights
    codec: CodecStage

    @classmethod
    def of(cls, patches: StagePatches) -> EngineModels:
        """Read the models as they are now; raises `Fallback` for one that cannot run accelerated."""
        semantic, coarse = patches.semantic.ready_weights(), patches.coarse.ready_weights()
        return cls(
            patches.semantic.model(semantic),
            patches.semantic.draft(semantic, 1),
            patches.coarse.model(coarse),
            patches.coarse.draft(coarse, 1),
            patches.fine.prepare(),
            patches.codec.ready_stage(),
        )


class RowPlan:
    """Prepares one request; raises `Fallback` for what the stages' own loops cannot do.

    A function of the caller's is `NotShared`: it is to be called in the order and with the random numbers it has alone.

    Parameters
    ----------
    request : Request
        Of one row.
    chunking : Chunking
        How its waveform is cut; None: not at all.
    check : callable
        Called before each pass of the fine stage; may raise to stop.
    generator : Generator
        Takes the place of the device's own.
    """

    def __init__(
        self,
        patches: StagePatches,
        models: EngineModels,
        request: Request,
        chunking: Chunking | None,
        check: Callable[[], None],
        generator: Generator,
    ):
        configs = request.configs
        self._patches, self._models, self._request = patches, models, request
        self._check, self._generator = check, generator
        self._device = models.semantic.weights.device
        self._voices = request.voices
        self._coarse_spec = patches.coarse.spec(configs.coarse_spec, request.voices)
        self._fine_spec = patches.fine.spec(configs.fine_spec, request.voices)
        prepared = patches.semantic.prepare(configs.semantic, 1, request.arguments("semantic"))
        _, self._semantic_spec, self._semantic_sampling = prepared
        arguments = request.arguments("coarse")
        _, self._coarse_sampling = patches.coarse.prepare(self._coarse_spec, configs.coarse, 1, arguments)
        if self._semantic_sampling.calls_others or self._coarse_sampling.calls_others:
            plans = self._semantic_sampling.processors, self._coarse_sampling.processors
            names = ", ".join(
                name for plan in plans if plan is not None for name in (plan.names, plan.criteria) if name
            )
            raise NotShared(
                "BarkEngine: expected no function of the caller's, which may count its calls or draw random numbers, "
                f"among the options, and no stopping criterion, got {names}; model.generate and stream take them"
            )
        patches.semantic.note_options(self._semantic_sampling)
        patches.coarse.note_options(self._coarse_sampling)
        self._policy = self._make_policy(chunking)

    def plan(self) -> Plan:
        """Make the plan by which the row starts each stage."""
        return Plan(
            SemanticStage(self._models.semantic, self._semantic_spec),
            CoarseStage(self._models.coarse, self._coarse_spec),
            self._start_semantic,
            self._start_coarse,
            lambda tokens: repad(self._semantic_spec, self._coarse_spec, tokens),
            lambda emit: ChunkDecoder(self._policy, self._models.codec, self._coarse_spec, emit),
            self._preset,
        )

    def _start_semantic(self, stage: SemanticStage, cache: KVCache) -> SemanticState:
        request = self._request
        prompt = SemanticPrompt(request.input_ids, request.attention_mask, self._voices).to(self._device)
        histories, sampling = prompt.voices.semantic, self._semantic_sampling
        source = _source(stage.model, self._models.semantic_draft)
        state = stage.start(prompt.input_ids, prompt.attention_mask, histories, sampling, cache, source)
        state.sampler.generator = self._generator
        return state

    def _start_coarse(self, stage: CoarseStage, cache: KVCache) -> CoarseState:
        source = _source(stage.model, self._models.coarse_draft)
        state = stage.start(1, self._voices.coarse, self._coarse_sampling, cache, source)
        state.sampler.generator = self._generator
        return state

    def _preset(self, semantic_tokens: Tensor, decoder: ChunkDecoder) -> VoicePreset | None:
        if isinstance(self._policy, Preview) or decoder.row_lengths_samples is None:
            return None
        codes = decoder.codes
        if codes is None:
            codes = semantic_tokens.new_zeros(1, self._fine_spec.num_codebooks, 0)
        pad, codebooks = self._semantic_spec.pad_token, self._coarse_spec.num_codebooks
        return presets_of(semantic_tokens, codes, decoder.row_lengths_samples, pad, codebooks)[0]

    def _make_policy(self, chunking: Chunking | None) -> Policy:
        histories = self._voices.fine
        if chunking is None:
            return Whole(*self._fine(), histories)
        # As `stream` plans it for the request alone.
        samplings = self._semantic_sampling, self._coarse_sampling
        greedy = not any(sampling.do_sample for sampling in samplings)
        spec, request = self._coarse_spec, self._request
        chunking.plan = stream_plan(chunking, self._patches, request, spec, interleaved=greedy)
        return make_policy(chunking, self._fine_spec, self._device, histories, self._fine, self._upcoming_generator)

    def _fine(self) -> tuple[FineStage, FineSampling]:
        patch, request = self._patches.fine, self._request
        temperature = patch.settings.stock_bugs.fine_temperature(request.configs.fine, request.arguments("fine"))
        sampling = FineSampling(temperature, before_pass=self._check, source=self._generator)
        return patch.ready_stage(self._models.fine, self._fine_spec), sampling

    def _upcoming_generator(self, frames: int) -> Generator:
        draws = frames * self._coarse_spec.num_codebooks if self._coarse_sampling.do_sample else 0
        vocab_size = self._models.coarse.spec.output_vocab_size
        return after_noise(self._device, 1, vocab_size, draws, self._generator)


def _source(model: CausalModel, draft: Draft | None) -> Speculation | None:
    return None if draft is None else Speculation(model, draft)
