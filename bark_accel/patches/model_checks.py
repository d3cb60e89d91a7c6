"""Refuses models that cannot be accelerated, before anything is patched."""

from __future__ import annotations

from transformers import BarkModel

from bark_accel.hf.module_checks import class_name, way_out
from bark_accel.hf.offload import is_offloaded
from bark_accel.hf.points import SUBMODELS
from bark_accel.report import Fallback, FallbackKind

from .patched import METHODS, all_submodels, is_ours
from .stage_patch import StagePatch

# Kinds that a later call may lose again (model.eval(), hooks removed); the others are refused at once.
_TRANSIENT = {FallbackKind.TRAINING, FallbackKind.HOOKED_MODULE}


def check_classes(model: BarkModel) -> None:
    for point in SUBMODELS.values():
        submodel = point.owner(model)
        if type(submodel) is not point.kind:
            got = f"{class_name(type(submodel))}{way_out(submodel)}"
            raise ValueError(f"model.{point.attribute}: expected a {point.kind.__name__}, got a {got}")
    if type(model).codec_decode is not BarkModel.codec_decode:
        raise ValueError(f"{type(model).__name__}.codec_decode: expected BarkModel's own, got an override")


def check_not_covered(model: BarkModel) -> None:
    """Refuse methods that somebody else set on the instance."""
    for owner in (model, *all_submodels(model)):
        for name in METHODS:
            if name in vars(owner) and not is_ours(vars(owner)[name]):
                kind = type(owner).__name__
                raise ValueError(f"{kind}.{name}: expected the class's own or ours, got one set on the instance")


def check_extractable(patch: StagePatch, *, also_transient: bool) -> None:
    try:
        patch.weights()
        if also_transient and is_offloaded(patch.module):
            raise Fallback(patch.stage, FallbackKind.HOOKED_MODULE, "accelerate keeps its weights")
    except Fallback as fallback:
        if also_transient or fallback.reason.kind not in _TRANSIENT:
            raise ValueError(f"accelerate_bark: {fallback.reason}") from None
