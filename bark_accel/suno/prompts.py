"""History prompts, as suno calls voice presets: by name, from a file, or as arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bark_accel.hf.voices import resolve_voice
from bark_accel.voices.preset import checked_preset, load_voice_preset

LANGUAGES = {"en": "English", "de": "German", "es": "Spanish", "fr": "French", "hi": "Hindi", "it": "Italian"}
LANGUAGES |= {"ja": "Japanese", "ko": "Korean", "pl": "Polish", "pt": "Portuguese", "ru": "Russian", "tr": "Turkish"}
LANGUAGES |= {"zh": "Chinese"}
SUNO_VOICES = {"announcer"}
SUNO_VOICES |= {f"{v}{language}_speaker_{n}" for v in ("", "v2/") for language in LANGUAGES for n in range(10)}


def load_history_prompt(history_prompt: Any, processor: Any = None) -> dict[str, np.ndarray]:
    """Read a history prompt.

    Parameters
    ----------
    history_prompt : str, path or mapping
        The name of a voice, an .npz file, or the arrays of one. A name is looked for in the folder that
        BARK_ACCEL_PROMPTS names (laid out as suno's `assets/prompts`), in the installed package `bark` of suno's, and
        among the processor's voices; other names than suno's only in the folder and the processor.
    processor : BarkProcessor, optional
        That of the model, if it has one.

    Raises
    ------
    TypeError, ValueError
        Name the argument, what was expected and what came.
    """
    if isinstance(history_prompt, Mapping):
        return checked_preset(history_prompt)
    if not isinstance(history_prompt, (str, os.PathLike)):
        got = type(history_prompt).__name__
        raise TypeError(f"history_prompt: expected the name of a voice, an .npz file or its arrays, got {got}")
    name = os.fspath(history_prompt)
    if name.endswith(".npz"):
        return load_voice_preset(name)
    for folder in _folders(name):
        if (folder / f"{name}.npz").is_file():
            return load_voice_preset(folder / f"{name}.npz")
    try:
        if processor is not None:
            preset = resolve_voice(processor, name)
            assert preset is not None
            return preset
        reason = "this model came without voices"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise ValueError(
        f"history_prompt: expected an .npz file or a voice, got {name!r}; voices are found in the folder "
        f"BARK_ACCEL_PROMPTS, in suno's package bark (pip install --no-deps bark==0.1.5) and in the model's "
        f"processor ({reason})"
    )


def _folders(name: str) -> list[Path]:
    """Folders in which the file of a voice may lie."""
    given = os.environ.get("BARK_ACCEL_PROMPTS")
    folders = [Path(given)] if given else []
    package = find_spec("bark") if name in SUNO_VOICES else None
    if package is not None:
        folders += [Path(place) / "assets" / "prompts" for place in package.submodule_search_locations or ()]
    return folders
