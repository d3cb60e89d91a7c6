"""Texts and voices as `generate` takes them, a voice for each text."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import BarkProcessor


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
    presets = [_preset(processor, voice, index, loaded) for index, voice in enumerate(voices)]
    return {**processor(list(texts)), "history_prompt": presets}


def _preset(processor: BarkProcessor, voice: Any, index: int, loaded: dict[str, Any]) -> Any:
    if voice is None or isinstance(voice, Mapping):
        return voice
    if not isinstance(voice, (str, os.PathLike)):
        raise TypeError(f"voices[{index}]: expected a name, a path, a mapping or None, got {type(voice).__name__}")
    name = os.fspath(voice)
    if name not in loaded:
        try:
            loaded[name] = processor("", voice_preset=name)["history_prompt"]
        except (OSError, ValueError) as error:
            expected = "a voice of the processor or the path of an .npz file"
            raise ValueError(f"voices[{index}]: expected {expected}, got {name!r} ({error})") from None
    return loaded[name]
