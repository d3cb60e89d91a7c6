"""A folder that keeps the chunks of a long text, so that a run that was killed can go on."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bark_accel.voices.preset import DRAFT_SUFFIX, PRESET_DIMENSIONS, write_atomically, write_npz

from .utterance import Utterance

_FORMAT = 1
_MANIFEST = "manifest.json"
_LOCK = ".lock"


class ChunkStore:
    """One file for each utterance, written at once or not at all, and before the first a manifest of their run.

    Parameters
    ----------
    folder : Path
        Created where it is missing.
    settings : dict
        Of whatever the audio depends on, for JSON.
    texts : list of str
        One for each utterance.

    Raises
    ------
    ValueError
        The folder holds other files, or a run of another text, model or settings (named).
    """

    def __init__(self, folder: Path, settings: dict[str, Any], texts: list[str]):
        self._folder = folder
        self._manifest: dict[str, Any] = json.loads(json.dumps({"format": _FORMAT, "text": texts, **settings}))
        self._check()
        folder.mkdir(parents=True, exist_ok=True)

    def _check(self) -> None:
        path, manifest = self._folder / _MANIFEST, self._manifest
        if not path.is_file():
            if self._folder.exists() and not (self._folder.is_dir() and all(map(_is_own, self._folder.iterdir()))):
                raise ValueError(
                    f"work_dir: expected a new or empty folder, or one of an earlier run, got {self._folder}"
                )
            return
        there = _read_manifest(path)
        other = [key for key in {**manifest, **there} if there.get(key) != manifest.get(key)]
        if other:
            raise ValueError(
                f"work_dir: {self._folder} holds a run with another {', '.join(other)}; "
                "name another folder, or delete this one"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out; the lock goes with the process.

        Raises `ValueError` where another has it, or where the folder has become another run's meanwhile, and
        `ImportError` on systems without POSIX file locks.
        """
        import fcntl  # not on Windows, where the package can be imported all the same

        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / _LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"work_dir: another run is using {self._folder}") from None
            for draft in filter(_is_draft, self._folder.iterdir()):
                draft.unlink()
            self._check()
            yield

    def read(self, index: int) -> Utterance | None:
        """An utterance that was written, or None."""
        path = self._path(index)
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                preset = {key: arrays[key] for key in PRESET_DIMENSIONS if key in arrays}
                return Utterance(torch.from_numpy(arrays["audio"]), preset or None, bool(arrays["cut"]))
        except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
            raise ValueError(f"work_dir: {path} is damaged ({error}); delete it to generate it again") from error

    def write(self, index: int, utterance: Utterance) -> None:
        if not (self._folder / _MANIFEST).exists():
            # Only now, so that arguments that `generate` refuses leave the folder to better ones.
            content = json.dumps(self._manifest, indent=1, ensure_ascii=False)
            write_atomically(self._folder / _MANIFEST, content.encode())
        arrays = {"audio": utterance.audio.numpy(), "cut": np.array(utterance.cut)}
        write_npz(self._path(index), {**arrays, **(utterance.preset or {})})

    def _path(self, index: int) -> Path:
        return self._folder / f"chunk_{index:06d}.npz"


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of UTF-8 too
        raise ValueError(f"work_dir: {path} is damaged ({error}); name another folder, or delete this one") from error
    if not isinstance(there, dict):
        raise ValueError(f"work_dir: expected {path} of an earlier run, got one of something else")
    return there


def _is_own(path: Path) -> bool:
    """Left by a run that was killed before its first chunk."""
    return _is_draft(path) or path.name == _LOCK


def _is_draft(path: Path) -> bool:
    """Left by a run that was killed."""
    return path.name.startswith(".") and path.suffix == DRAFT_SUFFIX
