"""Answers of trials, kept on disk: what was found out on a machine once holds for every later process there.

They lie in ``$XDG_CACHE_HOME/bark_accel`` (``~/.cache/bark_accel``), a file for each key.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path


def place(kind: str, key: str) -> Path:
    """Return the file of an answer. Raises `RuntimeError` where there is no home to keep it in."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~").expanduser() / ".cache") / "bark_accel"
    return folder / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def read(path: Path, key: str) -> dict[str, str] | None:
    """Return what was kept for a key; None where nothing was, or nothing that makes sense."""
    try:
        kept = json.loads(path.read_text())
        return {name: str(kept[name]) for name in kept if name != "key"} if kept["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(path: Path, key: str, answer: Mapping[str, str], is_kept: Callable[[], bool]) -> None:
    """Store an answer: of two processes that try at once, the first one decides. Raises `OSError` where it cannot be.

    `is_kept` tells whether the file that is there already makes sense.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            json.dump({"key": key, **answer}, file)
        try:
            os.link(draft, path)
        except FileExistsError:
            if not is_kept():
                os.replace(draft, path)
    finally:
        Path(draft).unlink(missing_ok=True)
