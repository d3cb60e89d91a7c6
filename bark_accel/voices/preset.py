"""Voice presets in the format of suno's: three arrays of codes, in a dict or an .npz file."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

PRESET_DIMENSIONS = {"semantic_prompt": 1, "coarse_prompt": 2, "fine_prompt": 2}
DRAFT_SUFFIX = ".tmp"


def save_voice_preset(path: str | os.PathLike[str], preset: Mapping[str, Any]) -> None:
    """Write a voice preset, replacing a file of that name at once or not at all.

    Transformers reads it back: `processor(text, voice_preset=path)`.

    Parameters
    ----------
    path : path-like
        Ends in `.npz`.
    preset : mapping
        Integer arrays or CPU tensors `semantic_prompt` [T], `coarse_prompt` [2, F] and `fine_prompt` [8, F], none of
        them empty; other keys are left out.

    Raises
    ------
    TypeError, ValueError
        Name the part, what was expected and what came.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"path: expected a name that ends in .npz, got {str(path)!r}")
    write_npz(path, checked_preset(preset))


def load_voice_preset(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read what an .npz file holds; nothing in it is executed.

    Returns
    -------
    dict of str to array
        As they were saved: of a voice preset `semantic_prompt` [T], `coarse_prompt` [2, F] and `fine_prompt` [8, F].

    Raises
    ------
    ValueError
        There is no such file, it is another kind of file, or it is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"expected an .npz archive of arrays, got {path}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise ValueError(f"{path}: expected arrays of numbers, got a damaged file or another kind ({error})") from error


def preset_digest(preset: Mapping[str, Any]) -> str:
    """The same for equal codes, whatever their integer type."""
    digest = hashlib.sha256()
    for key, value in sorted(preset.items()):
        array = np.ascontiguousarray(np.asarray(value), dtype=np.int64)
        digest.update(f"{key}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """As `np.savez`, at once or not at all."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_atomically(path, content.getvalue())


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file at once or not at all, whenever the process is killed."""
    draft = path.with_name(f".{path.name}.{os.getpid()}{DRAFT_SUFFIX}")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def checked_preset(preset: Any) -> dict[str, np.ndarray]:
    """The three arrays of a voice preset; raises `TypeError` or `ValueError` unless they look like one."""
    if not isinstance(preset, Mapping) or not PRESET_DIMENSIONS.keys() <= preset.keys():
        got = ", ".join(map(str, preset)) if isinstance(preset, Mapping) else type(preset).__name__
        raise ValueError(f"preset: expected the keys {', '.join(PRESET_DIMENSIONS)}, got {got or 'none'}")
    arrays = {key: np.asarray(preset[key]) for key in PRESET_DIMENSIONS}
    for key, array in arrays.items():
        if not np.issubdtype(array.dtype, np.integer):
            raise TypeError(f"preset[{key!r}]: expected integers, got {array.dtype}")
        if array.ndim != PRESET_DIMENSIONS[key] or array.size == 0:
            expected = f"{PRESET_DIMENSIONS[key]} dimensions and at least one code"
            raise ValueError(f"preset[{key!r}]: expected {expected}, got shape {list(array.shape)}")
    return arrays
