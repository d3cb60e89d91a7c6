"""Finds the object behind a method that may have been wrapped."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

T = TypeVar("T")


def owner_of(method: Any, kind: type[T]) -> T | None:
    """The object of a kind that a bound method belongs to, also below wrappers; None where there is none.

    Wrappers are what `functools.wraps` marks (decorators, torch.no_grad(), a recorder) and `functools.partial`.
    """
    while method is not None:
        owner = getattr(method, "__self__", None)
        if isinstance(owner, kind):
            return owner
        method = method.func if isinstance(method, functools.partial) else getattr(method, "__wrapped__", None)
    return None
