"""A request that a replica generates, as its listener holds it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import numpy as np
import torch

from bark_accel import AudioStreamer, SpeechRequest
from bark_accel.engine.errors import RequestEnded
from bark_accel.streaming.streamer import AudioSource, GenerationCancelled

from .messages import Submit

# More chunks than an utterance has: as in an engine, nobody waits for the listener.
_ANY_NUMBER = 2**31


class ReplicaDied(RuntimeError):
    """Raised by the requests that a replica had when it ended."""


class RemoteSound(AudioSource):
    """A source for an `AudioStreamer` to listen to, without a model in this process."""

    def __init__(self, sampling_rate: int):
        self._sampling_rate = sampling_rate

    @property
    def sampling_rate(self) -> int:
        return self._sampling_rate

    def generate(self) -> None:
        """Stand for a model that is elsewhere."""
        raise NotImplementedError


class RemoteRequest(SpeechRequest):
    """See `SpeechRequest`; its `status` is "queued" up to the end.

    Parameters
    ----------
    source : RemoteSound
    arguments : dict
        Of `BarkEngine.submit`.
    left : callable
        Called when it is cancelled.
    after : RemoteRequest, optional
        What is heard before it.
    """

    def __init__(
        self,
        source: RemoteSound,
        arguments: dict[str, Any],
        left: Callable[[RemoteRequest], None],
        after: RemoteRequest | None = None,
    ):
        streamer = AudioStreamer(cast(Any, source), policy="exact", max_queued_chunks=_ANY_NUMBER)
        super().__init__(streamer, arguments["seed"], None, whole=False, after=after)
        self.arguments = arguments
        self._number: int | None = None
        self._before = after
        self.left_at: float | None = None
        """Time of the first `cancel` (`time.monotonic`)."""
        self._left = left

    def cancel(self) -> None:
        super().cancel()
        if self.left_at is None:
            self.left_at = time.monotonic()
            self._left(self)

    def message(self, number: int) -> Submit:
        """The request for a replica, once it has a number."""
        self.begin()
        self._number, before, self._before = number, self._before, None
        if before is None:
            return Submit(number, self.arguments)
        return Submit(number, self.arguments, before._number, max(0.0, before.due - time.monotonic()))

    def take(self, samples: np.ndarray) -> None:
        """Hand on the next samples [S], unless nobody listens any more."""
        with suppress(RequestEnded, GenerationCancelled):
            self.deliver(torch.from_numpy(samples)[None])
