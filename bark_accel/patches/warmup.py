"""Does before the first request what it would have to wait for."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BarkModel

from bark_accel.decoding.rng import seeded
from bark_accel.hf.configs import GenerationConfigs
from bark_accel.hf.offload import device_of
from bark_accel.report import AccelerationReport, attempt

from .patched import accelerated_patch
from .points import StagePatches
from .reporting import acceleration_report
from .stream_plan import kept_speed

# Semantic tokens of a warm-up: the coarse stage then has a whole window and the start of another.
_TOKENS = 24


def warmup(model: BarkModel, **inputs: Any) -> AccelerationReport:
    """Generate half a second once, without a trace, so that the first request finds everything there.

    Compiled ops are compared on a GPU, caches are allocated, weights read and copied, and CUDA graphs captured for the
    batch size and sampling options given; with `fit_windows=True` the speed by which a CPU's streams are planned is
    measured. Random state and results of later calls are as without it.

    Parameters
    ----------
    model : BarkModel
        Accelerated.
    **inputs
        Arguments of `model.generate`, as later calls will have them: the processor's tensors, `history_prompt`,
        sampling options. No `streamer`.

    Returns
    -------
    AccelerationReport
        What the call ran on; `decode_step` says why.

    Raises
    ------
    TypeError
        `model` is not a `BarkModel`, or a `streamer` is given.
    ValueError
        `model` is not accelerated, or as `model.generate` raises.
    """
    patch = accelerated_patch(model, "warmup")
    if inputs.get("streamer") is not None:
        raise TypeError("warmup: expected no streamer, for there is nothing to hear, got one")
    limit = inputs.get("semantic_max_new_tokens") or _TOKENS
    with seeded(0, device_of(model)), torch.no_grad():
        model.generate(**inputs | {"semantic_max_new_tokens": min(limit, _TOKENS)})
    if patch.settings.fit_windows and device_of(model).type == "cpu":
        configs, patches = GenerationConfigs.of(model), StagePatches.of(model, patch.settings)
        # Where a stage falls back, no stream has a plan.
        attempt(lambda: kept_speed(patches, len(inputs["input_ids"]), configs.coarse_spec, configs.fine_spec))
    return acceleration_report(model)
