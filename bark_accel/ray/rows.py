"""Rows of texts as tables have them, and their seeds."""

from __future__ import annotations

import hashlib
import json
import math
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

ADDED = ("audio", "sampling_rate", "seconds", "error", "report")
"""Columns that a synthesis adds; a `seed` column it fills."""


def check_columns(names: Iterable[str], what: str) -> None:
    """Raise `ValueError` unless a table has texts, and no column that a synthesis adds."""
    names = list(names)
    if "text" not in names:
        raise ValueError(f"{what}: expected a column 'text', got {', '.join(map(repr, names)) or 'no columns'}")
    taken = [name for name in names if name in ADDED]
    if taken:
        raise ValueError(f"{what}: expected no column {taken[0]!r}, which is added; rename it")


def seed_of(given: Any, *key: object) -> int:
    """The seed that a row has, or one derived from `key`; raises `ValueError` for what is no seed."""
    if is_missing(given):
        digest = hashlib.sha256(json.dumps(key).encode()).digest()
        return int.from_bytes(digest[:4], "little")
    # A column with empty fields comes as float64.
    is_whole = isinstance(given, numbers.Integral) or (isinstance(given, float) and given.is_integer())
    if isinstance(given, bool) or not is_whole or not 0 <= given < 2**63:
        raise ValueError(f"seed: expected a whole number from 0 to 2**63 - 1, got {given!r}")
    return int(given)


def is_missing(value: Any) -> bool:
    """Tell whether a field of a table is empty: None, "" or NaN."""
    return value is None or value == "" or (isinstance(value, numbers.Real) and math.isnan(value))


def with_columns(table: pa.Table, columns: dict[str, pa.Array]) -> pa.Table:
    """The table with these columns at its end, which replace those of the same names."""
    kept = table.drop_columns([name for name in columns if name in table.column_names])
    for name, values in columns.items():
        kept = kept.append_column(name, values)
    return kept


def spoken_columns(
    seeds: list[int | None], audio: list[np.ndarray | None], rate: int, errors: list[str | None], reports: list[str]
) -> dict[str, pa.Array]:
    """Columns of rows that were said, or failed: their audio is None and they have an error."""
    lengths = [None if samples is None else len(samples) / rate for samples in audio]
    return {
        "seed": pa.array(seeds, pa.int64()),
        "audio": pa.array(audio, pa.list_(pa.float32())),
        "sampling_rate": pa.array([rate] * len(audio), pa.int32()),
        "seconds": pa.array(lengths, pa.float64()),
        "error": pa.array(errors, pa.string()),
        "report": pa.array(reports, pa.string()),
    }
