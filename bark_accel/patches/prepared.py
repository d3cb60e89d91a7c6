"""Hands what a call has prepared of its stages before any work to them, so that none is prepared twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from bark_accel.stages.codec import CodecStage

PREPARED = "_bark_accel_prepared"
"""Argument of a stage's `generate`: what its `prepare` returned for this call."""

_handed: ContextVar[tuple[Any, CodecStage] | None] = ContextVar("codec and its stage", default=None)


@contextmanager
def codec_handed(codec: Any, stage: CodecStage | None) -> Iterator[None]:
    """Have `handed_codec` return a codec's stage in the block: `BarkModel.codec_decode` has no argument for it."""
    before = _handed.set(None if stage is None else (codec, stage))
    try:
        yield
    finally:
        _handed.reset(before)


def handed_codec(codec: Any) -> CodecStage | None:
    """Return the stage of a codec that this call has prepared; None where there is none."""
    handed = _handed.get()
    return handed[1] if handed is not None and handed[0] is codec else None
