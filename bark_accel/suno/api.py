"""`bark.api` of suno's package: its functions, arguments and defaults, on accelerated stages."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from bark_accel.voices.preset import save_voice_preset

from .generation import codec_decode, generate_coarse, generate_fine, generate_text_semantic

__all__ = ["generate_audio", "save_as_prompt", "semantic_to_waveform", "text_to_semantic"]


def text_to_semantic(text: str, history_prompt: Any = None, temp: float = 0.7, silent: bool = False) -> np.ndarray:
    """Generate the semantic tokens [T] of a text; arguments and errors as in `generate_text_semantic`."""
    return generate_text_semantic(text, history_prompt, temp, silent=silent, use_kv_caching=True)


def semantic_to_waveform(
    semantic_tokens: np.ndarray,
    history_prompt: Any = None,
    temp: float = 0.7,
    silent: bool = False,
    output_full: bool = False,
) -> Any:
    """Generate the sound of semantic tokens.

    Parameters
    ----------
    semantic_tokens : array [T] int
    history_prompt, temp, silent
        As in `generate_coarse`; the fine stage draws at temperature 0.5.
    output_full : bool
        Return the codes as well.

    Returns
    -------
    array [S] float32, or (dict, array)
        The dict is a history prompt: `semantic_prompt` [T], `coarse_prompt` [2, F] and `fine_prompt` [8, F].

    Raises
    ------
    TypeError, ValueError, FileNotFoundError
        As `generate_coarse` does.
    """
    coarse = generate_coarse(semantic_tokens, history_prompt, temp, silent=silent, use_kv_caching=True)
    fine = generate_fine(coarse, history_prompt, temp=0.5)
    audio = codec_decode(fine)
    full = {"semantic_prompt": semantic_tokens, "coarse_prompt": coarse, "fine_prompt": fine}
    return (full, audio) if output_full else audio


def generate_audio(
    text: str,
    history_prompt: Any = None,
    text_temp: float = 0.7,
    waveform_temp: float = 0.7,
    silent: bool = False,
    output_full: bool = False,
) -> Any:
    """Say a text.

    Parameters
    ----------
    text : str
        Up to 13 seconds or so of speech.
    history_prompt : str, path or mapping, optional
        The name of a voice, an .npz file, or its arrays.
    text_temp, waveform_temp : float
        Temperatures of the semantic and of the coarse stage.
    silent, output_full
        As in `semantic_to_waveform`.

    Returns
    -------
    array [S] float32, or (dict, array)
        As `semantic_to_waveform` does.

    Raises
    ------
    TypeError, ValueError, FileNotFoundError
        As `generate_text_semantic` does.
    """
    tokens = text_to_semantic(text, history_prompt, text_temp, silent)
    return semantic_to_waveform(tokens, history_prompt, waveform_temp, silent, output_full)


def save_as_prompt(filepath: str | os.PathLike[str], full_generation: dict[str, np.ndarray]) -> None:
    """Write the history prompt that `output_full=True` returned; see `bark_accel.save_voice_preset`."""
    save_voice_preset(filepath, full_generation)
