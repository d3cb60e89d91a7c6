"""Speed of this machine with a model, by which its streams are planned."""

from __future__ import annotations

from transformers import BarkModel

from bark_accel._arguments import whole_number
from bark_accel._forked import avoid_lost_threads
from bark_accel.hf.configs import GenerationConfigs
from bark_accel.hf.offload import device_of
from bark_accel.report import Fallback
from bark_accel.streaming.plan import StreamSpeed

from .patched import accelerated_patch
from .points import StagePatches
from .stream_plan import kept_speed


def stream_speed(model: BarkModel, *, rows: int = 1) -> StreamSpeed:
    """Return this machine's speed with an accelerated model: what its streams are planned for, measured at first.

    Parameters
    ----------
    model : BarkModel
        Accelerated, on a CPU.
    rows : int
        Of the batch.

    Returns
    -------
    StreamSpeed
        For `AudioStreamer(speed=)`; the model keeps it for later streams of as many rows.

    Raises
    ------
    TypeError
        `model` is not a `BarkModel`.
    ValueError
        `model` is not accelerated, not on a CPU, or has a stage that cannot run accelerated; `rows` is below 1.
    """
    avoid_lost_threads()
    patch, rows = accelerated_patch(model, "stream_speed"), whole_number("rows", rows, 1)
    if (device := device_of(model)).type != "cpu":
        raise ValueError(f"stream_speed: expected a model on a CPU, got one on {device}")
    configs = GenerationConfigs.of(model)
    try:
        return kept_speed(StagePatches.of(model, patch.settings), rows, configs.coarse_spec, configs.fine_spec)
    except Fallback as fallback:
        raise ValueError(f"stream_speed: expected a model that runs accelerated, got {fallback.reason}") from None
