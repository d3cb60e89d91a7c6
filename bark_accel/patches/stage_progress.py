"""Progress of the stages: how it reaches their patches, and how Transformers' own loops are counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from bark_accel.stages.loops import TokenListener
from bark_accel.streaming.progress import Progress

from .token_loop import TokenTap

PROGRESS = "_bark_accel_progress"
"""Argument of a stage's `generate`: the `Progress` that it tells."""
# Of a generation that nothing limits, in Transformers.
_DEFAULT_TOKENS = 20


def counting(progress: Progress | None, part: str, listener: TokenListener) -> TokenListener:
    """The listener, with each token counted before it hears of it."""
    if progress is None:
        return listener

    def on_token(tokens: Tensor) -> None:
        progress.step(part)
        listener.on_token(tokens)

    return TokenListener(listener.before_token, on_token)


def counted(progress: Progress | None, part: str, config: GenerationConfig, kwargs: dict[str, Any]) -> dict[str, Any]:
    """A stage's arguments for Transformers' own loop, with a streamer that counts where they may have one."""
    beams = kwargs.get("num_beams") or config.num_beams or 1
    if progress is None or beams > 1:
        return kwargs
    return {**kwargs, "streamer": TokenTap(on_token=lambda _: progress.step(part), streamer=kwargs.get("streamer"))}


def counting_passes(progress: Progress | None, frames: int) -> Callable[[int, int], None]:
    """Tell of passes over windows as of so many frames: all but the last, the codec being left."""

    def after_pass(done: int, passes: int) -> None:
        if progress is not None:
            progress.reach("sound", frames * done // (passes + 1))

    return after_pass


def longest(config: GenerationConfig, kwargs: dict[str, Any]) -> int:
    """The semantic tokens that a generation may have."""
    return kwargs.get("max_new_tokens") or config.max_new_tokens or config.max_length or _DEFAULT_TOKENS
