"""The patch of each point (`bark_accel.hf.points`), and those that a model has now."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import BarkModel

from bark_accel.hf.points import SUBMODELS, submodels
from bark_accel.report import Fallback, FallbackKind
from bark_accel.streaming.owner import owner_of

from .coarse import CoarsePatch
from .fine import CodecPatch, FinePatch
from .semantic import SemanticPatch
from .stage_patch import Settings, StagePatch

PATCHES: dict[str, type[StagePatch]] = {"semantic": SemanticPatch, "coarse": CoarsePatch, "fine": FinePatch}


@dataclass(frozen=True)
class StagePatches:
    """Patches of the stages of one model."""

    semantic: SemanticPatch
    coarse: CoarsePatch
    fine: FinePatch
    codec: CodecPatch

    @classmethod
    def of(cls, model: BarkModel, settings: Settings) -> StagePatches:
        """Find the patches of the modules that a model has now; raises `Fallback` where a sub-model is not ours."""
        found = {stage: stage_patch(submodel) for stage, submodel in submodels(model).items()}
        semantic, coarse, fine = found["semantic"], found["coarse"], found["fine"]
        if not isinstance(semantic, SemanticPatch):
            raise not_patched("semantic")
        if not isinstance(coarse, CoarsePatch):
            raise not_patched("coarse")
        if not isinstance(fine, FinePatch):
            raise not_patched("fine")
        return cls(semantic, coarse, fine, CodecPatch(model.codec_model, settings))


def stage_patch(submodel: nn.Module) -> StagePatch | None:
    """The patch behind a sub-model's `generate`, also under wrappers such as a trace's; None for stock's."""
    return owner_of(submodel.generate, StagePatch)


def not_patched(stage: str) -> Fallback:
    """The fallback of a sub-model that is not ours."""
    detail = f"model.{SUBMODELS[stage].attribute} was replaced or restored after accelerate_bark; call it again"
    return Fallback(stage, FallbackKind.REPLACED_MODULE, detail)
