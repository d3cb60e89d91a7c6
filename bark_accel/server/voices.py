"""Voices by name: the model's own, aliases that clients send by default, and uploaded ones."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from bark_accel import load_voice_preset, save_voice_preset
from bark_accel.voices.preset import VoicePreset

from .errors import ApiError

# In an order in which neighbours get different voices of a model that has two, a woman's and a man's.
ALIASES = (
    *("alloy", "echo", "nova", "onyx", "shimmer", "ash", "coral", "fable", "sage", "ballad", "marin", "verse"),
    "cedar",
)
MAX_UPLOADED = 200
logger = logging.getLogger("bark_accel.server")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def aliased(names: list[str]) -> dict[str, str | None]:
    """The voice that each alias means; English ones where there are any, None where a model has no named voices."""
    english = [name for name in names if "en_speaker" in name] or names
    return {alias: english[i % len(english)] if english else None for i, alias in enumerate(ALIASES)}


class UploadedVoices:
    """Voices that clients have uploaded, by name.

    Parameters
    ----------
    folder : Path, optional
        Where they are kept, one .npz file each. None: they end with the process.
    """

    def __init__(self, folder: Path | None):
        self._temporary = tempfile.TemporaryDirectory(prefix="bark_accel_voices") if folder is None else None
        self._folder = Path(self._temporary.name) if self._temporary is not None else Path(folder or ".")
        self._folder.mkdir(parents=True, exist_ok=True)

    def names(self) -> list[str]:
        """Sorted."""
        return sorted(path.stem for path in self._folder.glob("*.npz") if _NAME.fullmatch(path.stem))

    def get(self, name: str) -> VoicePreset | None:
        """The voice of that name, if there is one."""
        try:
            return load_voice_preset(self._path(name)) if self._has(name) else None
        except ValueError:
            if self._has(name):
                raise
            return None  # deleted a moment ago

    def fitting(self, fits: Callable[[VoicePreset], bool]) -> list[str]:
        """The names, sorted, of those that a model can speak with; reads every file, leaves out what is no voice."""
        return [name for name in self.names() if (preset := self._readable(name)) is not None and fits(preset)]

    def _readable(self, name: str) -> VoicePreset | None:
        try:
            return self.get(name)
        except (TypeError, ValueError) as error:
            logger.warning("the uploaded voice %s is not listed: %s", name, error)
            return None

    def check_name(self, name: str, taken: list[str]) -> None:
        """Raise `ApiError` for a name that cannot be, or is taken."""
        if not _NAME.fullmatch(name):
            raise ApiError(400, "name: expected 1 to 64 letters, digits, '.', '_' or '-'", param="name")
        if name in taken or self._has(name):
            raise ApiError(409, f"name: there is a voice {name!r} already", param="name", code="voice_exists")
        if len(self.names()) >= MAX_UPLOADED:
            raise ApiError(409, f"expected at most {MAX_UPLOADED} uploaded voices; delete one", code="too_many_voices")

    def add(self, name: str, preset: VoicePreset) -> None:
        """Keep a checked voice."""
        save_voice_preset(self._path(name), preset)

    def delete(self, name: str) -> bool:
        """Forget a voice; False where there is none."""
        if not self._has(name):
            return False
        self._path(name).unlink(missing_ok=True)
        return True

    def close(self) -> None:
        """Remove what was not to be kept."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def _has(self, name: str) -> bool:
        return _NAME.fullmatch(name) is not None and self._path(name).is_file()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.npz"


def read_voice(content: bytes) -> VoicePreset:
    """Read an .npz file; nothing in it is executed. Raises `ApiError` for anything else."""
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        file.write(content)
        file.flush()
        try:
            return load_voice_preset(file.name)
        except (TypeError, ValueError) as error:
            message = str(error).replace(file.name, "the file")
            raise ApiError(400, f"file: {message}", param="file", code="invalid_voice") from None
