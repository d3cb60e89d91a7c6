"""Audio while it is generated: the queue between a generation and its listener."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from numbers import Real
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bark_accel._arguments import whole_number
from bark_accel.ops.idle_threads import end_idle_threads
from bark_accel.voices.preset import VoicePreset

from .owner import owner_of
from .plan import STARTS, StreamPlan, StreamSpeed

if TYPE_CHECKING:
    from transformers import BarkModel

POLICIES = ("exact", "low_latency", "preview")


class GenerationCancelled(Exception):
    """Raised inside a generation whose listener has left; `generate` catches it."""


class AudioSource:
    """Base of the object behind `model.generate` of an accelerated model: what a streamer can listen to."""

    @property
    def sampling_rate(self) -> int:
        """Samples per second."""
        raise NotImplementedError

    def check(self, **generate_kwargs: Any) -> None:
        """Raise what `generate` with these arguments would raise before any work."""


class AudioStreamer:
    """Pass it as `model.generate(..., streamer=streamer)` in one thread, iterate over it in another.

    Yields float32 CPU tensors [B, S], rows silent after their end. Joined along S they are exactly the waveform that
    `generate` returns. Also an asynchronous iterator (`async for`), and a context manager that cancels the generation
    when the block is left.

    Parameters
    ----------
    model : BarkModel
        Accelerated; the streamer takes the sampling rate from it and does not keep it.
    policy : {"low_latency", "exact", "preview"}
        `"exact"`: Transformers' own codes; no sound before the first fine window is full (13.7 s of speech) or the
        utterance has ended. `"low_latency"`: the fine stage runs on the frames there are, `lookahead_frames` beyond
        each chunk; the codes differ from those of the whole utterance. `"preview"`: the coarse codebooks only.
    first_chunk_frames, max_chunk_frames : int
        Length of the first chunk and bound of the later ones (75 frames a second with suno's models). Low-latency
        chunks double in length on an accelerator and go to the bound at once on a CPU, unless they are planned; a
        preview's all have the first one's length. Unused by `"exact"`.
    lookahead_frames : int
        Frames that the fine stage sees beyond a low-latency chunk.
    timeout : float, optional
        Seconds to wait: for a chunk, before the listener gets a `TimeoutError`; for room in the queue, before the
        generation fails with one. None: for ever.
    max_queued_chunks : int
        Chunks that may wait for the listener before the generation pauses. No utterance of suno's models has more
        than 64 with the default lengths, so that a generation pauses only where it is asked to.
    interleave : bool, optional
        Generate coarse tokens before the semantic stage has ended. Each stage then draws from a generator of its own:
        the same seed gives the same audio again, but not the audio of a run without it. Unused where Transformers'
        own loop has to run a stage. None: where no token is drawn (greedy), so that none changes.
    start : {"soonest", "smooth"}
        Of a low-latency stream on a CPU, of a model with `fit_windows=True`: its chunks are planned from the machine's
        speed so that as little silence as it allows follows the first sound, which comes as soon as the first chunk
        has its length (`"soonest"`), or as late as it has to for no silence at all (`"smooth"`).
    speed : StreamSpeed, optional
        The speed to plan for. None: this machine's, measured before the first stream of a model (half a second with
        bark-small) and kept with it.
    plan : StreamPlan, optional
        A low-latency stream's chunks, lookahead and history, which then have no other source: an earlier stream's
        `plan`, with the same seed, gives its sound again.

    Attributes
    ----------
    sampling_rate : int
        Samples per second.
    row_lengths_samples : list of int, optional
        Samples of each row; None until that is settled (at the latest when the generation has ended).
    presets : list of dict, optional
        The voice preset that each row makes (int64 arrays); None until the generation has ended, and for a preview.
    plan : StreamPlan, optional
        What was given or planned; None before the generation has started, and for a stream without a plan.

    Raises
    ------
    TypeError, ValueError
        Name the argument, what was expected and what came; the model is not accelerated.
    """

    def __init__(
        self,
        model: BarkModel,
        *,
        policy: str = "low_latency",
        first_chunk_frames: int = 30,
        max_chunk_frames: int = 480,
        lookahead_frames: int = 15,
        timeout: float | None = None,
        max_queued_chunks: int = 64,
        interleave: bool | None = None,
        start: str = "soonest",
        speed: StreamSpeed | None = None,
        plan: StreamPlan | None = None,
    ):
        if policy not in POLICIES:
            raise ValueError(f"policy: expected one of {', '.join(map(repr, POLICIES))}, got {policy!r}")
        first_chunk_frames = whole_number("first_chunk_frames", first_chunk_frames, 1)
        max_chunk_frames = whole_number("max_chunk_frames", max_chunk_frames, first_chunk_frames)
        lookahead_frames = whole_number("lookahead_frames", lookahead_frames, 0)
        max_queued_chunks = whole_number("max_queued_chunks", max_queued_chunks, 1)
        if timeout is not None and not (isinstance(timeout, Real) and 0 < timeout <= threading.TIMEOUT_MAX):
            raise ValueError(
                f"timeout: expected None or seconds > 0, at most {threading.TIMEOUT_MAX:.0f}, got {timeout!r}"
            )
        if not (interleave is None or isinstance(interleave, bool)):
            raise TypeError(f"interleave: expected None, True or False, got {interleave!r}")
        if start not in STARTS:
            raise ValueError(f"start: expected one of {', '.join(map(repr, STARTS))}, got {start!r}")
        for name, value, kind in (("speed", speed, StreamSpeed), ("plan", plan, StreamPlan)):
            if not (value is None or isinstance(value, kind)):
                raise TypeError(f"{name}: expected None or a {kind.__name__}, got {value!r}")
        if plan is not None and policy != "low_latency":
            raise ValueError(f"plan: expected policy 'low_latency' with it, got {policy!r}")
        self.sampling_rate = source_of(model).sampling_rate
        self.policy = policy
        self.first_chunk_frames = first_chunk_frames
        self.max_chunk_frames = max_chunk_frames
        self.lookahead_frames = lookahead_frames
        self.timeout = None if timeout is None else float(timeout)
        self.max_queued_chunks = max_queued_chunks
        self.interleave = interleave
        self.start = start
        self.speed = speed
        self.plan = plan
        self.row_lengths_samples: list[int] | None = None
        self.presets: list[VoicePreset] | None = None
        self._changed = threading.Condition()
        self._queue: deque[Tensor] = deque()
        self._reserved = self._used = self._ended = self._cancelled = False
        self._error: BaseException | None = None
        self._async_waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    # generate() may copy its keyword arguments; a copy must still be this queue.

    def __copy__(self) -> AudioStreamer:
        return self

    def __deepcopy__(self, memo: dict) -> AudioStreamer:
        return self

    # The listener's side.

    def __iter__(self) -> AudioStreamer:
        return self

    def __next__(self) -> Tensor:
        """The next chunk; raises what the generation raised, or `TimeoutError`."""
        end_idle_threads()
        with self._changed:
            if not self._changed.wait_for(self._something_to_take, self.timeout):
                raise self._timed_out()
            chunk = self._take()
        if chunk is None:
            raise StopIteration
        return chunk

    def __aiter__(self) -> AudioStreamer:
        return self

    async def __anext__(self) -> Tensor:
        """Return the next chunk as `__next__` does, without blocking the event loop."""
        end_idle_threads()
        waiter = (asyncio.get_running_loop(), asyncio.Event())
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        while True:
            with self._changed:
                if self._something_to_take():
                    chunk = self._take()
                    break
                waiter[1].clear()
                self._async_waiters.append(waiter)
            try:
                await asyncio.wait_for(waiter[1].wait(), None if deadline is None else deadline - time.monotonic())
            except asyncio.TimeoutError:
                raise self._timed_out() from None
            finally:
                with self._changed:
                    self._async_waiters.remove(waiter)
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    def cancel(self) -> None:
        """Stop listening: waiting chunks are dropped, iterators end, and `generate` stops before its next step.

        It returns what it had generated. Safe from any thread, at any time, and more than once.
        """
        with self._changed:
            self._cancelled = True
            self._queue.clear()
            if self._error is None:
                self._ended = True
            self._notify()

    def __enter__(self) -> AudioStreamer:
        return self

    def __exit__(self, *error: object) -> None:
        self.cancel()

    # The generation's side.

    def reserve(self) -> None:
        """Keep it for one generation; raises `ValueError` where another one has it."""
        with self._changed:
            if self._reserved or self._used:
                raise _was_used()
            self._reserved = True

    @contextmanager
    def producing(self) -> Iterator[None]:
        """Wrap a generation: its end, or its error, becomes the listener's. A cancelled one ends quietly."""
        with self._changed:
            if self._used:
                raise _was_used()
            self._used = True
        try:
            yield
        except GenerationCancelled:
            self._end(None)
        except BaseException as error:
            self.fail(error)
            raise
        else:
            self._end(None)

    def finish(self) -> None:
        """End: no more chunks will come."""
        self._end(None)

    def fail(self, error: BaseException) -> None:
        """End with an error, which the listener gets after the chunks that are still queued."""
        if isinstance(error, (StopIteration, StopAsyncIteration)):
            # Raised by an iterator, it would pass for the end of the audio.
            cause, error = error, RuntimeError(f"AudioStreamer: the generation raised {error!r}")
            error.__cause__ = cause
        self._end(error)

    def check(self) -> None:
        """Raise `GenerationCancelled` if nobody listens any more."""
        if self._cancelled:
            raise GenerationCancelled

    def deliver(self, chunk: Tensor) -> None:
        """Queue a chunk [B, S], waiting for room."""
        with self._changed:
            if not self._changed.wait_for(self._has_room, self.timeout):
                raise TimeoutError(
                    f"AudioStreamer: the listener took none of {len(self._queue)} chunks for {self.timeout} s"
                )
            self.check()
            self._queue.append(chunk)
            self._notify()

    def put(self, value: Any) -> None:
        """Refuse the tokens that Transformers' own loop gives to a streamer: this one takes audio."""
        raise TypeError(
            "AudioStreamer: expected to be passed as streamer= to generate of a model made faster with accelerate_bark,"
            " got tokens from another generation; for tokens use a streamer of Transformers"
        )

    def end(self) -> None:
        """See `put`."""

    # With the lock held.

    def _something_to_take(self) -> bool:
        return bool(self._queue) or self._ended

    def _has_room(self) -> bool:
        return self._cancelled or len(self._queue) < self.max_queued_chunks

    def _take(self) -> Tensor | None:
        if self._queue:
            chunk = self._queue.popleft()
            self._notify()
            return chunk
        if self._error is not None:
            raise self._error
        return None

    def _notify(self) -> None:
        self._changed.notify_all()
        for loop, event in self._async_waiters:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(event.set)

    def _end(self, error: BaseException | None) -> None:
        with self._changed:
            self._ended = True
            # A listener that has left is told nothing more.
            self._error = None if self._cancelled else error
            self._notify()

    def _timed_out(self) -> TimeoutError:
        state = "no generation has started with it" if not self._used else "the generation is still running"
        return TimeoutError(f"AudioStreamer: no audio for {self.timeout} s; {state}")


def source_of(model: Any) -> AudioSource:
    source = owner_of(getattr(model, "generate", None), AudioSource)
    if source is None:
        raise ValueError(
            f"model: expected a BarkModel made faster with accelerate_bark, got a {type(model).__name__} that is not"
        )
    return source


def _was_used() -> ValueError:
    return ValueError("streamer: expected a new AudioStreamer for every generation, got one that was used")
