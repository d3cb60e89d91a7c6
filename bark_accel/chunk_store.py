"""A folder that keeps the chunks of a long text, so that a run that was killed can go on."""

from __future__ import annotations

import fcntl
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .utterance import Utterance
from .voice_preset import DRAFT_SUFFIX, PRESET_DIMENSIONS, write_atomically, write_npz

_FORMAT = 1
_MANIFEST = "manifest.json"


class ChunkStore:
    """One file for each utterance, written at once or not at all, and a manifest of what they belong to.

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
        manifest = json.loads(json.dumps({"format": _FORMAT, "text": texts, **settings}))
        path = folder / _MANIFEST
        if path.is_file():
            self._check(json.loads(path.read_text(encoding="utf-8")), manifest)
            return
        if folder.exists() and not (folder.is_dir() and all(_is_draft(file) for file in folder.iterdir())):
            raise ValueError(f"work_dir: expected a new or empty folder, or one of an earlier run, got {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(manifest, indent=1, ensure_ascii=False).encode())

    def _check(self, there: dict[str, Any], manifest: dict[str, Any]) -> None:
        other = [key for key in {**manifest, **there} if there.get(key) != manifest.get(key)]
        if other:
            raise ValueError(
                f"work_dir: {self._folder} holds a run with another {', '.join(other)}; "
                "name another folder, or delete this one"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out; the lock goes with the process. Raises `ValueError` where another has it."""
        with (self._folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"work_dir: another run is using {self._folder}") from None
            for draft in filter(_is_draft, self._folder.iterdir()):
                draft.unlink()
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
        arrays = {"audio": utterance.audio.numpy(), "cut": np.array(utterance.cut)}
        write_npz(self._path(index), {**arrays, **(utterance.preset or {})})

    def _path(self, index: int) -> Path:
        return self._folder / f"chunk_{index:06d}.npz"


def _is_draft(path: Path) -> bool:
    """Left by a run that was killed."""
    return path.name.startswith(".") and path.suffix == DRAFT_SUFFIX
