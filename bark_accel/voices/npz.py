""".npz files of numbers: written at once or not at all, read no further than they are useful."""

from __future__ import annotations

import io
import lzma
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

DRAFT_SUFFIX = ".tmp"
# Of an array. A voice has a few thousand codes and is cut to those; an utterance of 15 s is 1.4 MB.
_MAX_BYTES = 1 << 24
# All that broken archives, streams and headers raise.
_DAMAGE: tuple[type[Exception], ...] = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError, SyntaxError),
    *(ValueError, TypeError, KeyError, EOFError, OSError, RuntimeError, OverflowError),
)


def read_npz(path: Path, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """Read some arrays of an .npz file; nothing in it is executed, and no other array is looked at.

    Raises
    ------
    ValueError
        There is no such file, it cannot be read, is another kind of file or damaged, a required array is missing, or
        one is no array of numbers or larger than 16 MiB, which shows before it is unpacked.
    """
    _check_archive(path)
    required = tuple(required)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            arrays = {key: _read(archive, key) for key in (*required, *optional) if key in names}
    except _DAMAGE as error:
        raise ValueError(f"{path}: expected arrays of numbers, got a damaged file or another kind ({error})") from error
    if not arrays.keys() >= set(required):
        raise ValueError(f"{path}: expected the keys {', '.join(required)}, got {', '.join(names[:10]) or 'none'}")
    return arrays


def _check_archive(path: Path) -> None:
    if os.path.isdir(path):
        raise ValueError(f"expected an .npz file, got the folder {path}")
    if not os.path.isfile(path):  # of pathlib's, some names raise an OSError
        raise ValueError(f"there is no file {path}")
    try:
        with path.open("rb") as file:
            known = zipfile.is_zipfile(file)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    if not known:
        raise ValueError(f"expected an .npz archive of arrays, got {path}")


def _read(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    with archive.open(f"{key}.npy") as file:
        if npy.read_magic(file) != (1, 0):
            raise ValueError(f"{key}: expected version 1.0 of the .npy format")
        shape, columns_first, dtype = npy.read_array_header_1_0(file)
        if dtype.kind not in "biuf":
            raise ValueError(f"{key}: expected numbers, got {dtype}")
        size = math.prod(shape) * dtype.itemsize
        if not 0 <= size <= _MAX_BYTES or min(shape, default=0) < 0:
            raise ValueError(f"{key}: expected at most {_MAX_BYTES} bytes, got {dtype} {list(shape)}")
        content = file.read(size)
        # One more, at whose end the checksum is compared.
        if len(content) != size or file.read(1):
            raise ValueError(f"{key}: expected {size} bytes, got fewer or more")
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if columns_first else "C")
    return array.astype(dtype.newbyteorder("="))


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the arrays as `np.savez` does, but atomically: the whole file or nothing."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_atomically(path, content.getvalue())


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file at once or not at all, whenever the process is killed; an `OSError` names `path`."""
    draft = path.with_name(f".{path.name}.{os.getpid()}{DRAFT_SUFFIX}")
    try:
        draft.unlink(missing_ok=True)
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
