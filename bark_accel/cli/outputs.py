"""Checks that a command can write what it is going to make, before it makes it."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .console import UserError

STDOUT = Path("-")
SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
CHART_SUFFIXES = (".png", ".svg", ".pdf")
# More than a sentence of sound, a voice or a chart takes.
_ROOM_BYTES = 2**20


def check_file(option: str, path: Path, suffixes: Sequence[str] = ()) -> None:
    """Raise `UserError` unless a file of this name can be written; a file that is there is left alone.

    Parameters
    ----------
    suffixes : sequence of str
        What its name may end in, which decides its format; any if there are none.
    """
    with _naming(option, path):
        if path.is_dir():
            raise UserError(f"{option}: expected a file, got the folder {path}")
        if suffixes and path.suffix.lower() not in suffixes:
            raise UserError(f"{option}: expected a name that ends in {' or '.join(suffixes)}, got {path}")
        if not path.parent.is_dir():
            raise UserError(f"{option}: expected a file in an existing folder, got {path}")
        if path.exists() and not path.is_file():
            raise UserError(f"{option}: expected a file, got {path}, a device or pipe")
        _check_file(path.resolve())


def check_folder(option: str, folder: Path, names: Sequence[str] = ()) -> None:
    """Raise `UserError` unless files of these names can be written into the folder, which may be made for it."""
    with _naming(option, folder):
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise UserError(f"{option}: expected a folder, got the file {existing}")
        _check_room(existing)
    for name in names:
        if (folder / name).exists():
            check_file(option, folder / name)


@contextmanager
def _naming(option: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{option}: cannot write {path}: {error.strerror or error}") from error


def _check_file(path: Path) -> None:
    if not path.exists():
        _check_room(path.parent)
        return
    path.open("r+b").close()
    if shutil.disk_usage(path.parent).free + path.stat().st_size < _ROOM_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _check_room(folder: Path) -> None:
    """Write a nameless file and remove it."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(_ROOM_BYTES))
        file.flush()
