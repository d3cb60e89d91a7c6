"""Whole numbers (numpy's included), flags and callables that a caller gives."""

from __future__ import annotations

import inspect
import operator
from functools import partial
from typing import Any


def whole_number(name: str, value: Any, least: int) -> int:
    """`value` as an int; raises `ValueError` unless it is a whole number of at least `least` (no bool, no float)."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise ValueError(f"{name}: expected a whole number >= {least}, got {value!r}")
    return number


def check_flags(**flags: object) -> None:
    """Raise `TypeError`, with its name, for a value that is neither True nor False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}: expected True or False, got {value!r}")


def name_of(value: object) -> str:
    """Name a callable: a function by its own name, any other object by its class."""
    if isinstance(value, partial):
        return f"partial of {name_of(value.func)}"
    named = value if inspect.isroutine(value) else type(value)
    return named.__name__ or "a class without a name"
