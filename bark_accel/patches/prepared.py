"""Hands what a call has prepared of its stages before any work to them, so that none is prepared twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from transformers import GenerationConfig

from bark_accel.stages.codec import CodecStage
from bark_accel.stages.spec import CoarseSpec

PREPARED = "_bark_accel_prepared"
"""Argument of a stage's `generate`: the `Prepared` of this call."""

T = TypeVar("T")


@dataclass(frozen=True)
class Prepared(Generic[T]):
    """Result of a stage's `prepare`, with the arguments that it was made for."""

    result: T
    arguments: tuple[Any, ...]


def prepared(handed: Prepared[T] | None, prepare: Callable[..., T], *arguments: Any) -> T:
    """Take what is handed if it was prepared for these arguments, which a wrapper may have changed; else prepare."""
    if handed is not None and _are_same(handed.arguments, arguments):
        return handed.result
    return prepare(*arguments)


def _are_same(one: Any, other: Any) -> bool:
    """Tell whether arguments are the same objects, or equal numbers, texts, configs and specs."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_are_same(value, other[name]) for name, value in one.items())
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_are_same, one, other))
    return isinstance(one, (int, float, str, GenerationConfig, CoarseSpec)) and one == other


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
