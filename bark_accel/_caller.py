"""Warnings that point at the caller's own line, however deep in the package they arise."""

from __future__ import annotations

import sys
import warnings

_NOT_CALLERS = {"bark_accel", "torch", "transformers", "contextlib", "functools", "threading"}


def warn_caller(message: str) -> None:
    """Issue a `UserWarning` as of the first frame outside this package and the libraries it is called through."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_CALLERS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
