"""Errors that end a request, or keep it out."""

from __future__ import annotations

import copy
import traceback


class EngineBusy(RuntimeError):
    """Raised by `submit` when `max_queued` requests wait already."""


class EngineClosed(RuntimeError):
    """Raised by `submit` after `close`, and by the requests that `close` has ended."""


class NotShared(ValueError):
    """Raised for what an engine cannot do, and `generate` can."""


class RequestCancelled(Exception):
    """Raised by `result` of a request that was cancelled."""


class DeadlineExceeded(TimeoutError):
    """Raised by a request that was not done in the seconds it was given."""


class RequestEnded(Exception):
    """Raised inside an engine where a request that has ended would go on."""


class EngineTraceback(Exception):
    """The cause of an error that an engine's thread met: its traceback as text."""


def without_frames(error: BaseException) -> BaseException:
    """Copy an error without its traceback, whose frames keep caches and models; its text becomes the copy's cause.

    A copy, because several requests may end with one error, and each listener adds to the traceback of his own.
    """
    cause = error.__cause__
    if error.__traceback__ is not None and not isinstance(error, DeadlineExceeded):
        cause = EngineTraceback("\n" + "".join(traceback.format_exception(error)))
    own = _copied(error)
    own.__cause__, own.__context__ = cause, None
    return own.with_traceback(None)


def _copied(error: BaseException) -> BaseException:
    """Return an equal error, or the same where its class makes none, or another one, from its `args`.

    An iterator's end becomes another error: nobody could wait for it with `await`.
    """
    if isinstance(error, (StopIteration, StopAsyncIteration)):
        return RuntimeError(f"expected audio, got {error!r} where it was generated")
    try:
        own = copy.copy(error)
        is_equal = type(own) is type(error) and str(own) == str(error)
    except Exception:
        return error
    return own if is_equal else error
