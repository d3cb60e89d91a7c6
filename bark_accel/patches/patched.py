"""Finds our patches on a model, and tells whose a method is."""

from __future__ import annotations

from typing import Any

from transformers import BarkModel

from bark_accel.hf.points import POINTS, submodels
from bark_accel.streaming.owner import owner_of

from .model import ModelPatch
from .points import stage_patch
from .stage_patch import StagePatch

METHODS = tuple(dict.fromkeys(point.method for point in POINTS.values()))


def accelerated_patch(model: Any, name: str) -> ModelPatch:
    """Return the patch of an accelerated model; raises as the function `name` does for others."""
    check_model(model)
    patch = model_patch(model)
    if patch is None:
        raise ValueError(f"{name}: expected an accelerated model, got one that is not; call accelerate_bark")
    return patch


def model_patch(model: BarkModel) -> ModelPatch | None:
    """The patch that owns an accelerated model, or None."""
    for name in METHODS:
        owner = owner_of(vars(model).get(name), ModelPatch)
        if owner is not None:
            return owner
    return None


def stage_patches(model: BarkModel) -> list[StagePatch]:
    """Return our patches of the sub-models that the model has now."""
    return [patch for m in submodels(model).values() if (patch := stage_patch(m)) is not None]


def all_submodels(model: BarkModel) -> list[Any]:
    """The sub-models a model has now, and those it had when it was accelerated."""
    patch = model_patch(model)
    now = [*submodels(model).values()]
    return now if patch is None else [*now, *(m for m in patch.patched_submodels if all(m is not n for n in now))]


def is_ours(method: object) -> bool:
    """Tell whether `method` is a patch's own: a wrapper around one is somebody else's, and stays."""
    return isinstance(getattr(method, "__self__", None), (StagePatch, ModelPatch))


def check_model(model: object) -> None:
    if not isinstance(model, BarkModel):
        got = f"{type(model).__module__}.{type(model).__name__}"
        raise TypeError(f"expected a transformers.BarkModel, got {got}{_model_inside(model)}")


# Where PEFT, pipelines, torch.compile and DataParallel keep the model they are made of; PEFT's has a `model` as well.
_WRAPPED = ("base_model.model", "model", "_orig_mod", "module")


def _model_inside(wrapper: Any) -> str:
    """Names the attribute of a wrapper that holds a model."""
    for path in _WRAPPED:
        inside = wrapper
        for name in path.split("."):
            inside = getattr(inside, name, None)
        if isinstance(inside, BarkModel):
            merged = "; merge LoRA layers first: merge_and_unload()" if path.startswith("base_model") else ""
            return f"; pass its .{path}{merged}"
    return ""
