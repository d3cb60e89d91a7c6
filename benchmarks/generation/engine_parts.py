"""The time of an engine by where it goes: prompts, steps that rows share, or sound, which they do not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from bark_accel.engine.scheduler import Scheduler

# Methods of the scheduler by what they do: feed prompts, feed tokens and draw, run the fine stage and the codec.
PARTS = {"prompts_s": "_feed_prompts", "steps_s": "_feed_tokens", "sound_s": "_decode"}


@contextmanager
def engine_parts() -> Iterator[dict[str, float]]:
    """Time each of `PARTS`, in seconds so far, of all engines that work in the block; a GPU is not waited for."""
    spent = dict.fromkeys(PARTS, 0.0)

    def timed(part: str, method: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            start = time.perf_counter()
            try:
                method(*arguments)
            finally:
                spent[part] += time.perf_counter() - start

        return call

    with ExitStack() as patches:
        for part, name in PARTS.items():
            patches.enter_context(mock.patch.object(Scheduler, name, timed(part, getattr(Scheduler, name))))
        yield spent
