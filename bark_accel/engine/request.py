"""A request as its listener holds it."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent import futures
from contextlib import suppress
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from bark_accel.ops.idle_threads import copied, end_idle_threads
from bark_accel.streaming.streamer import AudioStreamer

from .errors import DeadlineExceeded, RequestCancelled, RequestEnded, without_frames

logger = logging.getLogger("bark_accel")

# Seconds for which a listener can wait for sound, as if there was so much left to hear: of a stream, and of the whole.
_FIRST_SOUND_S = 2.0
_PATIENCE_S = 30.0


class SpeechRequest:
    """One utterance that an engine generates. Made by `BarkEngine.submit`.

    Iterating over it, also with `async for`, gives the audio as it comes: float32 CPU tensors [S], each once.
    `result()` and `await` give all of it. Leaving a `with` block cancels the request.

    Attributes
    ----------
    seed : int
        Seed of its random numbers.
    sampling_rate : int
        Samples per second.
    seconds_taken : float
        Seconds from getting a row to its end, whether it succeeded or not; 0 before the end.
    preset : dict, optional
        The voice preset that it makes (int64 arrays), once it is done; None for `policy="preview"`.
    """

    def __init__(
        self,
        streamer: AudioStreamer,
        seed: int,
        deadline_s: float | None,
        *,
        whole: bool,
        after: SpeechRequest | None = None,
    ):
        self.seed = seed
        self.sampling_rate = streamer.sampling_rate
        self.stage = "queued"
        """The stage that it is in, or was in when it ended."""
        self.preset: dict[str, np.ndarray] | None = None
        self.seconds_taken = 0.0
        self._begun_at: float | None = None
        self._streamer = streamer
        self._deadline_s = deadline_s
        self._process = os.getpid()
        self._submitted_at = time.monotonic()
        self._pieces: list[Tensor] = []
        self._samples = 0
        self._future: futures.Future[Tensor] = futures.Future()
        # Before any callback of others, which may iterate.
        self._future.add_done_callback(partial(_end_stream, streamer))
        self.is_stream = not whole
        """Somebody may hear its beginning before its end is there."""
        self._patience_s = _PATIENCE_S if whole else _FIRST_SOUND_S
        self.waits_from = self._submitted_at + self._patience_s
        """Time at which a listener of this alone has heard all that there is (`time.monotonic`)."""
        self._after = after
        self._begins_at = -math.inf

    # The listener's side.

    @property
    def status(self) -> str:
        """The stage: "queued", "semantic", "coarse", "fine", or "done" for one that failed or was cancelled, too."""
        return "done" if self.done() else self.stage

    @property
    def seconds_ready(self) -> float:
        """Seconds of audio that are ready."""
        return self._samples / self.sampling_rate

    def done(self) -> bool:
        """Tell whether it has ended, well or not."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> Tensor:
        """All audio, [S] float32 on the CPU.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait.

        Raises
        ------
        TimeoutError
            It is not done after `timeout` seconds; it goes on.
        RequestCancelled, DeadlineExceeded, EngineClosed
            What ended it; or what generating raised.
        RuntimeError
            It is not done, and this is a child of the process whose engine generates it.
        """
        self._check_process()
        end_idle_threads()
        try:
            return copied(self._future.result(timeout))  # others may ask for it
        except futures.TimeoutError:
            if self._future.done():
                raise
            raise TimeoutError(f"expected audio within {timeout} s, got a request that is {self.status}") from None

    def __await__(self) -> Generator[object, None, Tensor]:
        self._check_process()
        end_idle_threads()
        # Shielded: a task that gives up waiting leaves the request to others who wait.
        audio = yield from asyncio.shield(asyncio.wrap_future(self._future)).__await__()
        return copied(audio)

    def __iter__(self) -> Iterator[Tensor]:
        """Raises what ended the request early, but for `cancel`."""
        self._check_process()
        return (chunk[0] for chunk in self._streamer)

    async def __aiter__(self) -> AsyncIterator[Tensor]:
        self._check_process()
        async for chunk in self._streamer:
            yield chunk[0]

    def add_done_callback(self, call: Callable[[], object]) -> None:
        """Have `call` called once it has ended, in the thread that ends it; at once where it has."""

        def called(_: object) -> None:
            try:
                call()
            except KeyboardInterrupt:
                raise
            except BaseException:  # sys.exit() is not to end the thread of the engine, and with it all others' speech
                logger.exception("bark_accel: a callback of a request that has ended failed")

        self._future.add_done_callback(called)

    def cancel(self) -> None:
        """End it now: iterators end, `result` raises `RequestCancelled`, and its row is free at the next step.

        Safe from any thread, at any time, and more than once.
        """
        error = RequestCancelled(f"expected audio, got a request that was cancelled when it was {self.status}")
        self._settle(None, error)
        self._streamer.cancel()  # also of one that is done

    def __enter__(self) -> SpeechRequest:
        return self

    def __exit__(self, *error: object) -> None:
        self.cancel()

    def _check_process(self) -> None:
        if self._process != os.getpid() and not self._future.done():
            raise RuntimeError("expected the process that made the request, got a child of it, which has no engine")

    # The engine's side.

    def begin(self) -> None:
        """Note that it got a row. However long that took, it does not push aside at once who hears something."""
        self._begun_at = time.monotonic()
        self.waits_from = max(self.waits_from, self._begun_at + self._patience_s)

    def is_heard_in(self, seconds: float) -> None:
        """Learn that what is heard before it, in another process, lasts so many seconds more."""
        self._begins_at = time.monotonic() + seconds

    @property
    def plays(self) -> bool:
        """Tell whether its listener hears it already, and would hear a silence."""
        return self._samples > 0 and not self.done()

    @property
    def due(self) -> float:
        """Time at which its listener will have heard all that there is: who is due first, comes first.

        A request that others are heard before is due after them, and as long as they are not done long after them.
        """
        line = [self]
        # Read once: an engine of a request in the line may forget the one before meanwhile.
        while (before := line[-1]._after) is not None:
            line.append(before)
        line.reverse()
        for before, request in pairwise(line):
            request._begins_at = before._own_due + (0.0 if before.done() else _PATIENCE_S)
            if before.done() and before._after is None:
                request._after = None
        return self._own_due

    @property
    def _own_due(self) -> float:
        return max(self.waits_from, self._begins_at + self.seconds_ready)

    def check(self) -> None:
        """Raise `RequestEnded` where it has ended, or `DeadlineExceeded` where it is late."""
        if self._future.done():
            raise RequestEnded
        if self._deadline_s is not None and time.monotonic() - self._submitted_at > self._deadline_s:
            raise DeadlineExceeded(f"expected audio in {self._deadline_s} s, got a request that is {self.status}")

    def deliver(self, chunk: Tensor) -> None:
        """Take the next samples [1, S]."""
        self.check()
        self._pieces.append(chunk[0])
        self._samples += chunk.shape[1]
        self.waits_from = max(time.monotonic(), self.waits_from) if len(self._pieces) > 1 else time.monotonic()
        self.waits_from += chunk.shape[1] / self.sampling_rate
        # A copy, because a listener may change what it gets.
        self._streamer.deliver(chunk.clone())

    def finish(self, preset: dict[str, np.ndarray] | None) -> None:
        """Take the end of the audio, and the voice preset that it makes."""
        self.preset = preset
        pieces = self._pieces
        audio = torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.float32, device="cpu")
        self._settle(audio, None)

    def end(self, error: BaseException) -> None:
        """End it with an error, unless it has ended."""
        self._settle(None, without_frames(error))

    def _settle(self, audio: Tensor | None, error: BaseException | None) -> None:
        """Take the end, unless there was one; callbacks find all that belongs to it."""
        if not self._future.done():
            if self._begun_at is not None:
                self.seconds_taken = time.monotonic() - self._begun_at
            with suppress(futures.InvalidStateError):  # another thread was sooner
                if error is None:
                    self._future.set_result(audio)  # type: ignore[arg-type]
                else:
                    self._future.set_exception(error)
        self._pieces = []  # not sooner: the other thread may be joining them


def _end_stream(streamer: AudioStreamer, future: futures.Future[Tensor]) -> None:
    """Tell who iterates how a request has ended."""
    error = future.exception()
    if error is None:
        streamer.finish()
    elif isinstance(error, RequestCancelled):
        streamer.cancel()
    else:
        streamer.fail(error)
