"""Voice presets in the format of suno's: three arrays of codes, in a dict or an .npz file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .npz import read_npz, write_npz

# Not a code of any model.
_TOO_LARGE = 1 << 31
VoicePreset = dict[str, np.ndarray]
"""The codes of a voice, by `PRESET_DIMENSIONS`: integers [T], [n_coarse_codebooks, F] and [n_fine_codebooks, F]."""
PRESET_DIMENSIONS = {"semantic_prompt": 1, "coarse_prompt": 2, "fine_prompt": 2}


@dataclass(frozen=True)
class CodeLimits:
    """Codes that a model has: 0..vocab_size - 1, in so many `codebooks` where a part has two dimensions."""

    vocab_size: int
    codebooks: int | None = None


def save_voice_preset(path: str | os.PathLike[str], preset: Mapping[str, Any]) -> None:
    """Write a voice preset, replacing a file of that name at once or not at all.

    Transformers reads it back: `processor(text, voice_preset=path)`.

    Parameters
    ----------
    path : path-like
        Ends in `.npz`.
    preset : mapping
        Arrays or tensors of whole numbers `semantic_prompt` [T], `coarse_prompt` [2, F] and `fine_prompt` [8, F], not
        all of them empty; other keys are left out.

    Raises
    ------
    TypeError, ValueError
        Name the part, what was expected and what came; also where the folder of `path` is missing.
    OSError
        The file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"path: expected a name that ends in .npz, got {str(path)!r}")
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"path: expected a file in an existing folder, got {str(path)!r}")
    write_npz(path, checked_preset(preset))


def load_voice_preset(path: str | os.PathLike[str]) -> VoicePreset:
    """Read the voice preset that an .npz file holds; nothing in it is executed, and what else it holds is not read.

    Returns
    -------
    dict of str to array
        `semantic_prompt` [T], `coarse_prompt` [2, F] and `fine_prompt` [8, F], of the integer type they were saved in
        (int64 for floats that are whole numbers). Some may be empty, as Transformers takes them.

    Raises
    ------
    TypeError, ValueError
        There is no such file, it is another kind of file, or damaged, or holds no voice preset. The sizes are looked at
        before anything is unpacked.
    """
    path = Path(path)
    arrays = read_npz(path, PRESET_DIMENSIONS)
    try:
        return checked_preset(arrays)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from None


def preset_digest(preset: Mapping[str, Any]) -> str:
    """The same for equal codes, whatever their integer type."""
    digest = hashlib.sha256()
    for key, value in sorted(preset.items()):
        array = np.ascontiguousarray(np.asarray(value), dtype=np.int64)
        digest.update(f"{key}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def checked_preset(preset: Any) -> VoicePreset:
    """The three arrays of a voice preset; raises `TypeError` or `ValueError` unless they look like one."""
    if not isinstance(preset, Mapping) or not PRESET_DIMENSIONS.keys() <= preset.keys():
        got = ", ".join(map(str, preset)) if isinstance(preset, Mapping) else type(preset).__name__
        raise ValueError(f"preset: expected the keys {', '.join(PRESET_DIMENSIONS)}, got {got or 'none'}")
    arrays = {key: _codes(f"preset[{key!r}]", preset[key]) for key in PRESET_DIMENSIONS}
    for key, array in arrays.items():
        check_codes("preset", key, array)
    if not any(array.size for array in arrays.values()):
        raise ValueError("preset: expected at least one code, got none")
    return arrays


def check_codes(name: str, key: str, codes: Any, limits: CodeLimits | None = None) -> None:
    """Raise `ValueError` unless an array or tensor of integers has the shape of a part, and codes within limits.

    Parameters
    ----------
    name : str
        Of the preset, for errors.
    key : str
        Of the part.
    limits : CodeLimits, optional
        None: any number of codebooks, any codes.
    """
    shape, codebooks = list(codes.shape), None if limits is None else limits.codebooks
    if len(shape) != PRESET_DIMENSIONS[key] or (codebooks is not None and shape[0] != codebooks):
        expected = "[T]" if PRESET_DIMENSIONS[key] == 1 else f"[{codebooks or 'codebooks'}, T]"
        raise ValueError(f"{name}[{key!r}]: expected shape {expected}, got {shape}")
    if limits is not None and 0 not in shape:
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= limits.vocab_size:
            raise ValueError(f"{name}[{key!r}]: expected codes in 0..{limits.vocab_size - 1}, got {low}..{high}")


def _codes(name: str, value: Any) -> np.ndarray:
    """An array of integers; floats that are whole numbers become int64."""
    try:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected an array of integers, got {type(value).__name__} ({error})") from None
    if array.dtype.kind == "f" and bool((np.abs(array) < _TOO_LARGE).all()) and bool((array == np.trunc(array)).all()):
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {array.dtype}")
    return array
