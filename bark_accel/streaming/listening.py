"""`stream`: a generation in a thread of its own, for the caller to iterate over."""

from __future__ import annotations

import atexit
import inspect
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bark_accel._forked import avoid_lost_threads
from bark_accel.ops.idle_threads import end_idle_threads

from .streamer import AudioStreamer, source_of

if TYPE_CHECKING:
    from transformers import BarkModel


def stream(model: BarkModel, **generate_kwargs: Any) -> Iterator[Tensor]:
    """Generate in a thread of its own, on the caller's CUDA stream, and yield the audio as it comes.

    The arguments are checked here, unless `model.generate` is wrapped; the generation starts with the first chunk asked
    for, and what it raises is raised with the next one. Closing the iterator (or leaving the loop, once the iterator is
    freed) cancels it; the thread is joined in any case.

    Parameters
    ----------
    model : BarkModel
        Accelerated.
    generate_kwargs
        What `model.generate` takes. `streamer=AudioStreamer(model, ...)` chooses other settings than the default ones.
        `progress=` tells of the generation, from its thread; `"sound"` counts the frames given out.

    Yields
    ------
    Tensor
        The next samples of each row, [B, S] float32 on the CPU, at `model.generation_config.sample_rate` Hz; rows that
        have ended are silent. Joined along S they are what `generate` returns.

    Raises
    ------
    TypeError, ValueError
        At once: the model is not accelerated, a `streamer` is no `AudioStreamer` or was used, or as `generate` raises
        for bad arguments.
    TimeoutError
        With a chunk: it did not come within the `timeout` of the streamer.
    """
    for name in inspect.signature(AudioStreamer).parameters.keys() & generate_kwargs:
        raise TypeError(f"{name}: expected in streamer=AudioStreamer(model, {name}=...), got it as generate's argument")
    streamer = generate_kwargs.pop("streamer", None)
    if streamer is None:
        streamer = AudioStreamer(model)
    if not isinstance(streamer, AudioStreamer):
        raise TypeError(f"streamer: expected an AudioStreamer, got {type(streamer).__name__}")
    check_arguments(model, {**generate_kwargs, "streamer": streamer})
    avoid_lost_threads()  # the generation has a thread of its own, what the caller does with the audio this one
    streamer.reserve()
    return _listen(model, streamer, generate_kwargs, on_current_stream())


def check_arguments(model: Any, generate_kwargs: dict[str, Any]) -> None:
    """Raise what `generate` would in a thread of its own, before any work; a wrapper's arguments are not known yet."""
    source = source_of(model)
    if getattr(model.generate, "__self__", None) is not source:
        return
    place = on_current_stream()

    def check() -> None:
        with place:
            source.check(**generate_kwargs)

    # Modes such as autocast are a thread's own.
    with ThreadPoolExecutor(1, "bark_accel.check") as thread:
        thread.submit(check).result()


def on_current_stream() -> AbstractContextManager:
    """Return a context that puts another thread on this thread's CUDA stream and device."""
    return torch.cuda.stream(torch.cuda.current_stream()) if torch.cuda.is_initialized() else nullcontext()


def _listen(
    model: BarkModel, streamer: AudioStreamer, generate_kwargs: dict[str, Any], place: AbstractContextManager
) -> Iterator[Tensor]:
    def generate() -> None:
        try:
            with place:
                model.generate(**generate_kwargs, streamer=streamer)
        except BaseException as error:
            # What fails before the generation has taken the streamer has not reached the listener yet.
            streamer.fail(error)

    worker = threading.Thread(target=generate, name="bark_accel.stream", daemon=True)

    def leave() -> None:
        streamer.cancel()
        # The garbage collector may close the iterator in any thread, the worker too.
        if threading.current_thread() is not worker:
            worker.join()

    end_idle_threads()
    worker.start()
    _live.add(leave)
    try:
        yield from streamer
    finally:
        _live.discard(leave)
        leave()


# What ends each stream that is still listened to.
_live: set[Callable[[], None]] = set()


# An iterator that outlives the program's end would wait for a thread that Python has frozen by then. Registered once:
# `atexit.unregister` only blanks an entry, and Python's table would grow with every stream.
@atexit.register
def _leave_all() -> None:
    for leave in list(_live):
        leave()
