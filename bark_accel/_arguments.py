"""Whole numbers that a caller gives, numpy's included."""

from __future__ import annotations

import operator
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
