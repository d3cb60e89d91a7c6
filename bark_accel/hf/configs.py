"""Facts that stand in a model's configs."""

from __future__ import annotations

from typing import Any

from transformers import BarkModel


def sample_rate(model: BarkModel) -> int:
    """Samples per second: the generation config's, or the codec's where it has none."""
    codec: Any = model.codec_model.config
    rate = getattr(model.generation_config, "sample_rate", None)
    return int(codec.sampling_rate if rate is None else rate)
