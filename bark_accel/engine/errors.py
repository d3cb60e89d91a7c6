"""Errors that end a request, or keep it out."""

from __future__ import annotations

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
    """Take the traceback from an error, whose frames keep caches and models; its text becomes the error's cause."""
    if error.__traceback__ is not None and not isinstance(error, DeadlineExceeded):
        error.__cause__ = EngineTraceback("\n" + "".join(traceback.format_exception(error)))
    error.__context__ = None
    return error.with_traceback(None)
