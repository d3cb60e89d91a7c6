"""Checks of what suno's functions are given, before any work is done."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bark_accel._caller import warn_caller
from bark_accel.stages.spec import CoarseSpec
from bark_accel.voices.preset import CodeLimits, VoicePreset
from bark_accel.voices.voices import Voices

# Defaults of suno's, which stand for the checkpoint's own.
COARSE_HISTORY, COARSE_WINDOW = 630, 60


def words(text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError(f"text: expected a str, got {type(text).__name__}")
    text = re.sub(r"\s+", " ", text).strip()
    if not text:
        raise ValueError("text: expected something to say, got none")
    return text


def text_ids(tokenizer: Any, text: str, most: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, [1, most] int64 each."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if not ids:
        raise ValueError(f"text: expected something to say, got {text!r}, which has no tokens")
    if len(ids) > most:
        warn_caller(f"Bark reads {most} text tokens; a text of {len(ids)} is cut. Split it into sentences.")
    ids = ids[:most]
    padded = torch.tensor(ids + [0] * (most - len(ids)), dtype=torch.int64, device="cpu")
    positions = torch.arange(most, dtype=torch.int64, device="cpu")
    return padded[None], (positions < len(ids)).long()[None]


def options(temp: Any, top_k: Any, top_p: Any) -> dict[str, Any]:
    check_temperature(temp)
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: expected None or a number of tokens, got {top_k!r}")
    if top_p is not None and not 0 <= top_p <= 1:
        raise ValueError(f"top_p: expected None or a probability, got {top_p!r}")
    return {"divisor": float(temp), "most_likely": top_k, "nucleus": top_p}


def check_temperature(temp: Any) -> None:
    if isinstance(temp, (str, bytes)) or temp is None or not 0 < temp < math.inf:
        raise ValueError(f"temp: expected a number above 0, got {temp!r}; a small one takes the most likely token")


def tokens_within(seconds: float | None, rate_hz: float, most: int) -> int:
    """Tokens up to the first that makes the speech longer than `seconds`, summed as suno's code does."""
    if seconds is None:
        return most
    spoken = 0.0
    for tokens in range(1, most + 1):
        spoken += 1 / rate_hz
        if spoken > seconds:
            return tokens
    return most


def codes(name: str, value: Any, size: int, dimensions: int) -> Tensor:
    """Integers [T] or [K, T], not empty, in 0..size - 1, as int64."""
    if not isinstance(value, (np.ndarray, Tensor)):
        raise TypeError(f"{name}: expected an array, got {type(value).__name__}")
    array = np.asarray(value.cpu() if isinstance(value, Tensor) else value)
    if array.dtype.kind not in "iu" or array.ndim != dimensions or array.size == 0:
        shape = "[T]" if dimensions == 1 else "[codebooks, T]"
        raise ValueError(f"{name}: expected integers {shape}, not empty, got {array.dtype} {list(array.shape)}")
    if not (array.min() >= 0 and array.max() < size):
        raise ValueError(f"{name}: expected values in 0..{size - 1}, got {array.min()}..{array.max()}")
    return torch.from_numpy(array.astype(np.int64))


def semantic_voices(preset: VoicePreset | None, vocab_size: int) -> Voices:
    voices = Voices.read(preset, 1, {"semantic_prompt": CodeLimits(vocab_size)})
    _check_said(voices)
    return voices


def coarse_voices(preset: VoicePreset | None, spec: CoarseSpec) -> Voices:
    limits = {
        "semantic_prompt": CodeLimits(spec.semantic_vocab_size),
        "coarse_prompt": CodeLimits(spec.codebook_size, spec.num_codebooks),
    }
    voices = Voices.read(preset, 1, limits)
    _check_said(voices)
    expected = round(spec.tokens_per_semantic / spec.num_codebooks, 1)
    for semantic, coarse in filter(None, voices.coarse):
        if round(coarse.shape[1] / len(semantic), 1) != expected:
            got = f"{coarse.shape[1]} for {len(semantic)}"
            raise ValueError(f"history_prompt: expected {expected} coarse frames for a semantic token, got {got}")
    return voices


def _check_said(voices: Voices) -> None:
    if any(tokens is not None and tokens.numel() == 0 for tokens in voices.semantic):
        raise ValueError("history_prompt['semantic_prompt']: expected tokens, got none")


def windows(spec: CoarseSpec, positions: int, history: int, window: int) -> CoarseSpec:
    """The spec with windows as asked for; suno's default numbers stand for the checkpoint's own."""
    most, own = spec.max_history_tokens, spec.window_tokens
    history = most if history == COARSE_HISTORY else history
    window = own if window == COARSE_WINDOW else window
    if not min(60, most) <= history <= most:
        raise ValueError(f"max_coarse_history: expected {min(60, most)} to {most}, got {history!r}")
    room = positions - spec.max_input_tokens - history
    # Transformers' windows, which ours are, begin with the first codebook; suno's go on where the last one ended.
    if window != own and not (0 < window <= room and window % spec.num_codebooks == 0):
        raise ValueError(f"sliding_window_len: expected an even number from 2 to {room}, got {window!r}")
    return replace(spec, max_history_tokens=history, window_tokens=window, codes_only=True)


def coarse_tokens(spec: CoarseSpec, semantic_tokens: int) -> int:
    return math.floor(semantic_tokens * spec.tokens_per_semantic / spec.num_codebooks) * spec.num_codebooks
