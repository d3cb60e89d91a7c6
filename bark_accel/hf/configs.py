"""Facts of a model's configs: the specs of its stages, its codebooks, its sampling rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from transformers import BarkModel
from transformers.models.bark.generation_configuration_bark import (
    BarkCoarseGenerationConfig,
    BarkFineGenerationConfig,
    BarkSemanticGenerationConfig,
)

from bark_accel.stages.spec import CoarseSpec, FineSpec, SemanticSpec
from bark_accel.voices.preset import CodeLimits

from .points import SUBMODELS, PatchPoint
from .specs import coarse_spec, fine_spec, semantic_spec


@dataclass(frozen=True)
class GenerationConfigs:
    """The generation config of a `BarkModel`, its nested ones parsed as `BarkModel.generate` does."""

    semantic: BarkSemanticGenerationConfig
    coarse: BarkCoarseGenerationConfig
    fine: BarkFineGenerationConfig
    codebook_size: int
    sample_rate: int

    @classmethod
    def of(cls, model: BarkModel) -> GenerationConfigs:
        """Parse a model's; raises `ValueError` where one that `BarkModel.generate` needs is missing."""
        config = model.generation_config
        nested = {stage: _nested(config, point) for stage, point in SUBMODELS.items()}
        codebook_size = getattr(config, "codebook_size", None)
        if not isinstance(codebook_size, Integral):
            raise ValueError(f"generation_config.codebook_size: expected an int, got {codebook_size!r}")
        return cls(**nested, codebook_size=int(codebook_size), sample_rate=sample_rate(model))

    @property
    def semantic_spec(self) -> SemanticSpec:
        return semantic_spec(self.semantic)

    @property
    def coarse_spec(self) -> CoarseSpec:
        return coarse_spec(self.semantic, self.coarse, self.codebook_size)

    @property
    def fine_spec(self) -> FineSpec:
        return fine_spec(self.semantic, self.coarse, self.fine, self.codebook_size)

    @property
    def code_limits(self) -> dict[str, CodeLimits]:
        """The codes of a voice preset for this model."""
        coarse = coarse_limits(self.semantic, self.coarse, self.codebook_size)
        return {**coarse, **fine_limits(self.fine, self.codebook_size)}


def semantic_limits(semantic: BarkSemanticGenerationConfig) -> dict[str, CodeLimits]:
    """The codes that the semantic stage takes of a voice preset: one of generated tokens may end in padding.

    Raises `ValueError` where the config has no one end token, which is what Bark pads with.
    """
    if not isinstance(semantic.semantic_pad_token, Integral):
        raise ValueError(
            "eos_token_id of the semantic generation config: expected one id, which Bark also pads with, got "
            f"{semantic.semantic_pad_token!r}"
        )
    return {"semantic_prompt": CodeLimits(max(semantic.semantic_vocab_size, semantic.semantic_pad_token + 1))}


def coarse_limits(
    semantic: BarkSemanticGenerationConfig, coarse: BarkCoarseGenerationConfig, codebook_size: int
) -> dict[str, CodeLimits]:
    """The codes that the coarse stage takes of a voice preset."""
    return {**semantic_limits(semantic), "coarse_prompt": CodeLimits(codebook_size, coarse.n_coarse_codebooks)}


def fine_limits(fine: BarkFineGenerationConfig, codebook_size: int) -> dict[str, CodeLimits]:
    """The codes that the fine stage takes of a voice preset."""
    return {"fine_prompt": CodeLimits(codebook_size, fine.n_fine_codebooks)}


def _nested(config: object, point: PatchPoint) -> Any:
    nested = getattr(config, point.config_name, None)
    if not isinstance(nested, Mapping):
        raise ValueError(
            f"generation_config.{point.config_name}: expected a dict (BarkModel.generate needs the nested configs as "
            f"dicts, as from_pretrained gives them), got {type(nested).__name__}"
        )
    assert point.config is not None
    return point.config(**nested)


def sample_rate(model: BarkModel) -> int:
    """Samples per second: the generation config's, or the codec's where it has none."""
    codec: Any = model.codec_model.config
    rate = getattr(model.generation_config, "sample_rate", None)
    return int(codec.sampling_rate if rate is None else rate)
