"""A folder that keeps the parts of a corpus, so that a run that was killed can go on."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import soundfile

from bark_accel.longform.file_lock import try_lock
from bark_accel.voices.npz import DRAFT_SUFFIX, write_atomically

FORMATS = ("parquet", "wav")
_VERSION = 1


@dataclass(frozen=True)
class PartFolder:
    """Files of a corpus: `parts/part-000000.parquet` for each part, in WAV format its audio in `audio/`.

    A part's file is written last and at once, and a part is always made in the same way: one that is made twice is
    written over by itself.

    Parameters
    ----------
    folder : Path
        That every node sees.
    format : {"parquet", "wav"}
        Where audio is kept: in the part's table, or in a 16-bit WAV for each row.
    rows_per_part : int
    """

    folder: Path
    format: str
    rows_per_part: int

    def path(self, part: int) -> Path:
        return self.folder / "parts" / f"part-{part:06d}.parquet"

    def write(self, part: int, table: pa.Table) -> None:
        """Write the spoken rows of a part; safe from several processes."""
        paths: list[str | None] = [str(self.path(part).relative_to(self.folder))] * len(table)
        if self.format == "wav":
            paths = [self._write_wav(part * self.rows_per_part + i, row) for i, row in enumerate(_sound(table))]
            table = table.drop_columns("audio")
        buffer = io.BytesIO()
        pq.write_table(table.append_column("file", pa.array(paths, pa.string())), buffer)
        write_atomically(self.path(part), buffer.getvalue())

    def _write_wav(self, row: int, sound: tuple[np.ndarray, int] | None) -> str | None:
        if sound is None:
            return None
        buffer = io.BytesIO()
        soundfile.write(buffer, *sound, format="WAV", subtype="PCM_16")
        path = self.folder / "audio" / f"{row:08d}.wav"
        write_atomically(path, buffer.getvalue())
        return str(path.relative_to(self.folder))

    def manifest_rows(self, part: int) -> pa.Table:
        """A part that is there, without its audio; raises `ValueError` for a damaged one."""
        path = self.path(part)
        try:
            names = [name for name in pq.read_schema(path).names if name != "audio"]
            return pq.read_table(path, columns=names)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"out: {path} is damaged ({error}); delete it to make it again") from error

    def missing(self, parts: int, *, retry_failed: bool) -> list[int]:
        """Parts that are not there, or that have failed rows."""
        return [part for part in range(parts) if not self._is_done(part, retry_failed)]

    def _is_done(self, part: int, retry_failed: bool) -> bool:
        if not self.path(part).exists():
            return False
        return not retry_failed or pc.all(pc.is_null(self.manifest_rows(part)["error"])).as_py()

    def write_manifest(self, parts: int) -> pa.Table:
        """Write `manifest.parquet`, all rows in order without their audio, and return it."""
        table = pa.concat_tables([self.manifest_rows(part) for part in range(parts)], promote_options="permissive")
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        write_atomically(self.folder / "manifest.parquet", buffer.getvalue())
        return table

    @contextmanager
    def locked(self, settings: dict[str, Any]) -> Iterator[None]:
        """Keep other runs out, and refuse (`ValueError`) a folder of other things, or of a run with other settings."""
        settings = {"version": _VERSION, "format": self.format, "rows_per_part": self.rows_per_part, **settings}
        file = self.folder / "corpus.json"
        self._check(file, settings)
        for name in ("parts", "audio") if self.format == "wav" else ("parts",):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("a") as lock:
            if not try_lock(lock):
                raise ValueError(f"out: another run is using {self.folder}")
            self._check(file, settings)
            for draft in self.folder.rglob(f".*{DRAFT_SUFFIX}"):
                draft.unlink()
            write_atomically(file, json.dumps(settings, indent=1).encode())
            yield

    def _check(self, file: Path, settings: dict[str, Any]) -> None:
        if not file.exists():
            made_by_us = {"parts", "audio", ".lock"}
            entries = self.folder.iterdir() if self.folder.exists() else ()
            if {entry.name for entry in entries if not entry.name.endswith(DRAFT_SUFFIX)} - made_by_us:
                raise ValueError(f"out: expected a new or empty folder, or one of an earlier run, got {self.folder}")
            return
        try:
            there = dict(json.loads(file.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"out: {file} is damaged ({error}); name another folder, or delete this one") from error
        other = [key for key in {**settings, **there} if there.get(key) != settings.get(key)]
        if other:
            raise ValueError(
                f"out: {self.folder} holds a run with another {', '.join(other)}; name another folder, or delete it"
            )


def _sound(table: pa.Table) -> Iterator[tuple[np.ndarray, int] | None]:
    for audio, rate in zip(table["audio"], table["sampling_rate"], strict=True):
        yield (audio.values.to_numpy(), rate.as_py()) if audio.is_valid else None
