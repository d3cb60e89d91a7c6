"""Settings by which the fine stage chooses codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Generator, Tensor

from bark_accel.decoding.sampling import SamplingConfig


@dataclass
class FineSampling:
    """Settings by which codes are chosen.

    `temperature` None or 1.0 takes the most likely code, anything else draws one (as in Transformers), from
    `generator` or, without one, from `source`: the generation's, by default the device's own. `draw`, if given, takes
    codes [N] int64 from logits [N, ids] instead. `before_pass` is called before each pass over a window.
    """

    temperature: float | None
    generator: Generator | None = None
    before_pass: Callable[[], None] | None = None
    source: Generator | None = None
    draw: Callable[[Tensor], Tensor] | None = None


def fine_config(temperature: float | None) -> SamplingConfig:
    """Say how codes are chosen: 1.0 takes the most likely one, as in Transformers."""
    temperature = temperature or 1.0
    return SamplingConfig(temperature != 1.0, 1, temperature)
