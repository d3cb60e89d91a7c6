"""`say`: text to a .wav file."""

from __future__ import annotations

import time
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bark_accel import accelerate_bark

from .console import fail, out, warn
from .demo import load, write_wav
from .progress import StageBars, progress_bars

if TYPE_CHECKING:
    from bark_accel.patches.checkpoints import LoadedBark

# A model of random weights never ends by itself.
_RANDOM_SECONDS = 3.0


def say(text: str, path: Path, name: str | None, voice: str | None, seed: int, max_seconds: float | None) -> None:
    from bark_accel.patches.checkpoints import sample_rate

    if not text.strip():
        raise ValueError("the text is empty: there is nothing to say")
    if path.parent != Path() and not path.parent.is_dir():
        raise ValueError(f"--out: expected a file in an existing folder, got {path}")
    loaded = load(name)
    inputs = _inputs(loaded, text, voice)
    _warn_of_cut(loaded, text)
    if max_seconds is None and not loaded.pretrained:
        max_seconds = _RANDOM_SECONDS
    start = time.perf_counter()
    waveform = _generate(loaded, inputs, seed, max_seconds)
    elapsed_s = time.perf_counter() - start
    rate = sample_rate(loaded.model)
    audio_s = waveform.shape[-1] / rate
    if audio_s == 0:
        fail(f"the model ended before its first sound, so {path} was not written; try another --seed or text")
    write_wav(path, waveform, rate)
    summary = f"{audio_s:.2f} s of audio in {elapsed_s:.2f} s (real-time factor {elapsed_s / audio_s:.2f})"
    out.print(f"wrote {path}: {summary}", markup=False, soft_wrap=True)


def _generate(loaded: LoadedBark, inputs: dict[str, Any], seed: int, max_seconds: float | None) -> torch.Tensor:
    from bark_accel.patches.checkpoints import coarse_per_semantic, max_semantic_tokens, semantic_tokens
    from bark_accel.patches.recorder import record_stages

    model = accelerate_bark(loaded.model)
    limit = max_semantic_tokens(model)
    options: dict[str, Any] = {}
    if max_seconds is not None:
        limit = options["semantic_max_new_tokens"] = semantic_tokens(model, max_seconds)
    torch.manual_seed(seed)
    with progress_bars() as progress, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Bark reads")
        bars = StageBars(progress, "", limit, coarse_per_semantic(model))
        with record_stages(model, bars.start):
            waveform = model.generate(**inputs, **options, streamer=bars)
        bars.close()
    return waveform


def _inputs(loaded: LoadedBark, text: str, voice: str | None) -> dict[str, Any]:
    if voice is None:
        return loaded.inputs(text)
    if voice.endswith(".npz"):
        return {**loaded.inputs(text), "history_prompt": _read_preset(Path(voice))}
    names = [] if loaded.processor is None else loaded.processor.available_voice_presets
    if voice not in names:
        have = f"has {len(names)} voices, such as {names[0]!r}" if names else "has no named voices"
        raise ValueError(f"--voice: expected an .npz file or a voice name, got {voice!r}; this checkpoint {have}")
    return dict(loaded.processor(text, voice_preset=voice))


def _read_preset(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise ValueError(f"--voice: there is no file {path}")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"--voice: expected an .npz archive of arrays, got {path}")
    with np.load(path, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def _warn_of_cut(loaded: LoadedBark, text: str) -> None:
    from bark_accel.patches.checkpoints import text_tokens

    tokens, limit = text_tokens(loaded, text)
    if tokens > limit:
        warn(f"the text has {tokens} tokens and Bark reads {limit}: the rest is cut. Say it in parts.")
