"""Texts and voices as `generate` takes them, a voice for each text."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import BarkProcessor

from bark_accel.voices.preset import checked_preset, load_voice_preset


def batch_inputs(processor: Any, texts: Sequence[str], voices: Sequence[Any]) -> dict[str, Any]:
    """See `bark_accel.batch_inputs`."""
    if not isinstance(processor, BarkProcessor):
        raise TypeError(f"processor: expected a BarkProcessor, got {type(processor).__name__}")
    for name, values in (("texts", texts), ("voices", voices)):
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise TypeError(f"{name}: expected a list, got {type(values).__name__}")
    wrong = [type(text).__name__ for text in texts if not isinstance(text, str)]
    if wrong:
        raise TypeError(f"texts: expected a list of str, got {wrong[0]} in it")
    if not texts or len(texts) != len(voices):
        raise ValueError(f"expected as many voices as texts, at least one, got {len(voices)} and {len(texts)}")
    loaded: dict[str, Any] = {}
    presets = [_of_row(processor, voice, index, loaded) for index, voice in enumerate(voices)]
    return {**processor(list(texts)), "history_prompt": presets}


def resolve_voice(processor: Any, voice: Any) -> dict[str, np.ndarray] | None:
    """A voice preset: given as one, by a name that the processor knows, or as an .npz file (suffix or not).

    A name comes first, as in Transformers.
    """
    if voice is None:
        return None
    if isinstance(voice, Mapping):
        return checked_preset(voice)
    if not isinstance(voice, (str, os.PathLike)):
        raise TypeError(f"voice: expected a preset, an .npz file or a name, got {type(voice).__name__}")
    name, names = os.fspath(voice), _names(processor)
    if name in names:
        return checked_preset(processor("", voice_preset=name)["history_prompt"])
    path = name if name.endswith(".npz") else f"{name}.npz"
    if path == name or os.path.isfile(path):
        return load_voice_preset(path)
    have = f"has {len(names)} voices, such as {names[0]!r}" if names else "has no named voices"
    raise ValueError(f"voice: expected an .npz file or a voice name, got {name!r}; this checkpoint {have}")


def _names(processor: Any) -> list[str]:
    """Of the processor's voices; the property is younger than 4.46."""
    known = getattr(processor, "speaker_embeddings", None) or {}
    return [name for name in known if name != "repo_or_path"]


def _of_row(processor: BarkProcessor, voice: Any, row: int, loaded: dict[str, Any]) -> Any:
    """Each file is read once. What is a preset already stays where it is: `generate` checks it and moves it."""
    if voice is None or isinstance(voice, Mapping):
        return voice
    key = os.fspath(voice) if isinstance(voice, os.PathLike) else voice
    try:
        if not isinstance(key, str) or key not in loaded:
            loaded[key] = resolve_voice(processor, key)
    except (OSError, TypeError, ValueError) as error:
        raise type(error)(f"voices[{row}]: {error}") from None
    return loaded[key]
