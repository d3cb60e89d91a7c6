"""A folder that keeps the chunks of a long text, so that a run that was killed can go on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from bark_accel.voices.npz import DRAFT_SUFFIX, read_npz, write_atomically, write_npz
from bark_accel.voices.preset import PRESET_DIMENSIONS

from .file_lock import try_lock
from .utterance import Utterance

_FORMAT = 2
_MANIFEST = "manifest.json"
_LOCK = ".lock"
_CHUNK = "chunk_"


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
        The folder holds other files, or a run of another text, model or settings (named), or cannot be used.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], texts: list[str]):
        self._folder = folder
        self._manifest: dict[str, Any] = json.loads(json.dumps({"format": _FORMAT, "text": texts, **settings}))
        self._check_and_make()

    def _check_and_make(self) -> None:
        try:
            self._check()
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"work_dir: {self._folder} cannot be used ({error})") from error

    def _check(self) -> None:
        if not self._folder.is_dir():
            if os.path.lexists(self._folder):
                raise self._not_ours()
            return
        entries, manifest = list(self._folder.iterdir()), self._folder / _MANIFEST
        for entry in filter(_is_own, entries):
            # A run at the same time may have renamed its draft meanwhile.
            if not entry.is_file() and os.path.lexists(entry):
                raise ValueError(f"work_dir: expected a file, got a folder, a pipe or broken link: {entry}; delete it")
        if manifest in entries:
            self._check_manifest(manifest)
        elif not all(_is_draft(entry) or entry.name == _LOCK for entry in entries):
            raise self._not_ours()

    def _not_ours(self) -> ValueError:
        return ValueError(f"work_dir: expected a new or empty folder, or one of an earlier run, got {self._folder}")

    def _check_manifest(self, path: Path) -> None:
        there, manifest = _read_manifest(path), self._manifest
        if there.get("format") == 1:
            there = self._of_format_1(there)
        other = [key for key in {**manifest, **there} if there.get(key) != manifest.get(key)]
        if other:
            raise ValueError(
                f"work_dir: {self._folder} holds a run with another {', '.join(other)}; "
                "name another folder, or delete this one"
            )

    def _of_format_1(self, there: dict[str, Any]) -> dict[str, Any]:
        """Return a manifest of an earlier version, whose batches had one seed, as one of now.

        Chunks that were generated one by one are what they are now. Raises `ValueError` for others, unless all are
        there.
        """
        rows = there.pop("batch_size", None)
        texts = there.get("text")
        missing = not isinstance(texts, list) or any(not self._path(index).exists() for index in range(len(texts)))
        if rows != 1 and missing:
            raise ValueError(
                f"work_dir: {self._folder} holds an unfinished run of an earlier version of bark_accel (format 1), "
                f"which drew {rows} chunks at once from one seed; finish it with that version, or name another folder"
            )
        return {**there, "format": _FORMAT}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out; the lock goes with the process.

        Raises `ValueError` where another has it, or where the folder has become another run's meanwhile.
        """
        self._check_and_make()
        with self._open_lock() as file:
            if not try_lock(file):
                raise ValueError(f"work_dir: another run is using {self._folder}")
            for draft in filter(_is_draft, self._folder.iterdir()):
                draft.unlink()
            self._check()
            yield

    def _open_lock(self) -> IO[str]:
        try:
            # Not emptied: where it is a link, that file is somebody else's.
            return (self._folder / _LOCK).open("a")
        except OSError as error:
            raise ValueError(f"work_dir: {self._folder} cannot be written to ({error})") from error

    def read(self, index: int) -> Utterance | None:
        """An utterance that was written, or None."""
        path = self._path(index)
        if not path.exists():
            return None
        try:
            arrays = read_npz(path, ("audio", "cut"), PRESET_DIMENSIONS)
            audio, cut = torch.from_numpy(arrays.pop("audio").astype(np.float32)), bool(arrays.pop("cut"))
        except ValueError as error:
            raise ValueError(f"work_dir: {path} is damaged ({error}); delete it to generate it again") from error
        return Utterance(audio, arrays or None, cut)

    def write(self, index: int, utterance: Utterance) -> None:
        if not (self._folder / _MANIFEST).exists():
            # Only now, so that arguments that `generate` refuses leave the folder to better ones.
            content = json.dumps(self._manifest, indent=1, ensure_ascii=False)
            write_atomically(self._folder / _MANIFEST, content.encode())
        arrays = {"audio": utterance.audio.numpy(), "cut": np.array(utterance.cut)}
        write_npz(self._path(index), {**arrays, **(utterance.preset or {})})

    def _path(self, index: int) -> Path:
        return self._folder / f"{_CHUNK}{index:06d}.npz"


def kept_setting(folder: Path, name: str) -> Any:
    """A setting of the run that a folder holds, None where there is none; raises `ValueError` for a damaged one."""
    path = folder / _MANIFEST
    try:
        return _read_manifest(path).get(name)
    except OSError:
        return None


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of UTF-8 too
        raise ValueError(f"work_dir: {path} is damaged ({error}); name another folder, or delete this one") from error
    if not isinstance(there, dict):
        raise ValueError(f"work_dir: expected {path} of an earlier run, got one of something else")
    return there


def _is_own(path: Path) -> bool:
    """A name that a run gives to its files."""
    return _is_draft(path) or path.name in (_LOCK, _MANIFEST) or path.name.startswith(_CHUNK)


def _is_draft(path: Path) -> bool:
    """Left by a run that was killed."""
    return path.name.startswith(".") and path.suffix == DRAFT_SUFFIX
