"""Texts and voices as `generate` takes them, a voice for each text."""

from __future__ import annotations

import math
import numbers
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BarkProcessor, BatchFeature

from bark_accel.voices.preset import VoicePreset, checked_preset, load_voice_preset


class BatchInputs(BatchFeature):
    """Arguments of `generate`: texts, and a list of voice presets, which `to(device)` moves as well."""

    def to(self, *args: Any, **kwargs: Any) -> BatchInputs:
        texts = BatchFeature({name: self[name] for name in self if name != "history_prompt"}).to(*args, **kwargs)
        presets = [_moved(preset, texts["input_ids"].device) for preset in self["history_prompt"]]
        self.data = {**texts.data, "history_prompt": presets}
        return self


def _moved(preset: Any, device: torch.device) -> Any:
    if preset is None:
        return None
    return {key: part.to(device) if isinstance(part, Tensor) else part for key, part in preset.items()}


def batch_inputs(processor: BarkProcessor, texts: Iterable[str], voices: Any) -> BatchFeature:
    """Prepare texts with a voice each: `model.generate(**batch_inputs(processor, texts, voices))`.

    Parameters
    ----------
    processor : BarkProcessor
        Takes one voice a call itself.
    texts : iterable of str
        A list, an array, a column of a table, a generator.
    voices : iterable of as many, or one for all rows
        Each the name of one of the processor's voices, the path of an .npz file, a voice preset (a mapping of arrays
        or tensors), or None for no voice; so are "" and NaN, as empty fields of a table are read.

    Returns
    -------
    BatchFeature
        `input_ids` and `attention_mask` [B, 256], and `history_prompt`, a list of B voice presets (those that were
        loaded as int64 tensors). `to(device)` moves them, in place. An accelerated model moves them itself, but where
        its semantic stage falls back to Transformers' code.

    Raises
    ------
    TypeError, ValueError
        Name the argument, what was expected and what came.
    """
    if not isinstance(processor, BarkProcessor):
        raise TypeError(f"processor: expected a BarkProcessor, got {type(processor).__name__}")
    said = _listed("texts", texts)
    for row, text in enumerate(said):
        if not isinstance(text, str):
            raise TypeError(f"texts: expected a list of str, got {type(text).__name__} in row {row}")
    for_all = _is_missing(voices) or isinstance(voices, (str, os.PathLike, Mapping))
    each = [voices] * len(said) if for_all else _listed("voices", voices)
    if not said or len(said) != len(each):
        raise ValueError(f"expected as many voices as texts, at least one, got {len(each)} and {len(said)}")
    loaded: dict[str, Any] = {}
    presets = [_of_row(processor, voice, row, loaded) for row, voice in enumerate(each)]
    return BatchInputs({**processor(list(map(str, said))), "history_prompt": presets})


def _listed(name: str, values: Any) -> list[Any]:
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: expected a list, got {type(values).__name__}")
    return list(values)


def resolve_voice(processor: Any, voice: Any) -> VoicePreset | None:
    """A voice preset: given as one, by a name that the processor knows, or as an .npz file (suffix or not).

    A name comes first, as in Transformers.
    """
    if voice is None:
        return None
    if isinstance(voice, Mapping):
        return checked_preset(voice)
    if not isinstance(voice, (str, os.PathLike)):
        raise TypeError(f"voice: expected a preset, an .npz file or a name, got {type(voice).__name__}")
    name, names = os.fspath(voice), voice_names(processor)
    if name in names:
        return checked_preset(processor("", voice_preset=name)["history_prompt"])
    path = name if name.endswith(".npz") else f"{name}.npz"
    if path == name or os.path.isfile(path):
        return load_voice_preset(path)
    have = f"has {len(names)} voices, such as {names[0]!r}" if names else "has no named voices"
    raise ValueError(f"voice: expected an .npz file or a voice name, got {name!r}; this checkpoint {have}")


def voice_names(processor: Any) -> list[str]:
    """Return the names of the processor's voices; its own property for them is newer than Transformers 4.46."""
    known = getattr(processor, "speaker_embeddings", None) or {}
    return [name for name in known if name != "repo_or_path"]


def _is_missing(voice: Any) -> bool:
    """Tell whether a voice is None, or what an empty field of a table is read as."""
    if voice is None or (isinstance(voice, str) and not voice.strip()):
        return True
    pandas = sys.modules.get("pandas")
    return (isinstance(voice, numbers.Real) and math.isnan(voice)) or (pandas is not None and voice is pandas.NA)


def _of_row(processor: BarkProcessor, voice: Any, row: int, loaded: dict[str, Any]) -> Any:
    """Each file is read once. What is a preset already stays where it is: `generate` checks it and moves it."""
    if isinstance(voice, Mapping):
        return voice
    if _is_missing(voice):
        return None
    key = os.fspath(voice) if isinstance(voice, os.PathLike) else voice
    try:
        if not isinstance(key, str) or key not in loaded:
            preset = resolve_voice(processor, key)
            assert preset is not None
            loaded[key] = {part: torch.from_numpy(codes.astype(np.int64)) for part, codes in preset.items()}
    except (OSError, TypeError, ValueError) as error:
        raise type(error)(f"voices[{row}]: {error}") from None
    return loaded[key]
