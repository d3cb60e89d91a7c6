"""Errors that end a request, or keep it out."""

from __future__ import annotations


class EngineBusy(RuntimeError):
    """Raised by `submit` where as many requests wait as may wait."""


class EngineClosed(RuntimeError):
    """Raised by `submit` after `close`, and by the requests that `close` has ended."""


class RequestCancelled(Exception):
    """Raised by `result` of a request that was cancelled."""


class DeadlineExceeded(TimeoutError):
    """Raised by a request that was not done in the seconds it was given."""
