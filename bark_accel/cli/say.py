"""`say`: text to a .wav file."""

from __future__ import annotations

import time
import warnings
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bark_accel import AudioStreamer, accelerate_bark
from bark_accel.streamer import POLICIES

from .console import fail, out, warn
from .demo import load, write_wav
from .progress import StageBars, progress_bars
from .stream import STDOUT, write_stream

if TYPE_CHECKING:
    from transformers import BarkModel

    from bark_accel.patches.checkpoints import LoadedBark

# A model of random weights never ends by itself.
_RANDOM_SECONDS = 3.0


@dataclass(frozen=True)
class Request:
    """What to say, whose voice, how long at most (seconds; None: the model's own limit), and whether as it comes."""

    text: str
    voice: str | None
    seed: int
    max_seconds: float | None
    stream: bool = False
    policy: str | None = None


def say(request: Request, path: Path, name: str | None) -> None:
    """Write `path`, or raw PCM to stdout where it is `-`."""
    _check(request, path)
    # Then stdout is for the audio alone.
    out.stderr = path == STDOUT
    try:
        _say(request, path, name)
    finally:
        out.stderr = False


def _check(request: Request, path: Path) -> None:
    if not request.text.strip():
        raise ValueError("the text is empty: there is nothing to say")
    if not request.stream and request.policy is not None:
        raise ValueError(f"--policy {request.policy}: expected --stream with it")
    if request.policy is not None and request.policy not in POLICIES:
        raise ValueError(f"--policy: expected one of {', '.join(POLICIES)}, got {request.policy}")
    if path == STDOUT and not request.stream:
        raise ValueError("--out -: expected --stream with it; without, name a .wav file")
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"--out: expected a file in an existing folder, got {path}")


def _say(request: Request, path: Path, name: str | None) -> None:
    loaded = load(name)
    inputs = _inputs(loaded, request.text, request.voice)
    _warn_of_cut(loaded, request.text)
    if request.max_seconds is None and not loaded.pretrained:
        request = replace(request, max_seconds=_RANDOM_SECONDS)
    model = accelerate_bark(loaded.model)
    options = _options(model, request)
    torch.manual_seed(request.seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Bark reads")
        if request.stream:
            streamer = AudioStreamer(model, policy=request.policy or "low_latency")
            write_stream(streamer, model, {**inputs, **options}, path)
        else:
            _write_at_once(model, inputs, options, path)


def _write_at_once(model: BarkModel, inputs: dict[str, Any], options: dict[str, Any], path: Path) -> None:
    from bark_accel.patches.checkpoints import sample_rate

    start = time.perf_counter()
    waveform = _generate(model, inputs, options)
    elapsed_s = time.perf_counter() - start
    rate = sample_rate(model)
    audio_s = waveform.shape[-1] / rate
    if audio_s == 0:
        fail(f"the model ended before its first sound, so {path} was not written; try another --seed or text")
    write_wav(path, waveform, rate)
    summary = f"{audio_s:.2f} s of audio in {elapsed_s:.2f} s (real-time factor {elapsed_s / audio_s:.2f})"
    out.print(f"wrote {path}: {summary}", markup=False, soft_wrap=True)


def _options(model: BarkModel, request: Request) -> dict[str, Any]:
    from bark_accel.patches.checkpoints import semantic_tokens

    if request.max_seconds is None:
        return {}
    return {"semantic_max_new_tokens": semantic_tokens(model, request.max_seconds)}


def _generate(model: BarkModel, inputs: dict[str, Any], options: dict[str, Any]) -> torch.Tensor:
    from bark_accel.patches.checkpoints import coarse_per_semantic, max_semantic_tokens
    from bark_accel.patches.recorder import record_stages

    limit = options.get("semantic_max_new_tokens", max_semantic_tokens(model))
    with progress_bars() as progress:
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
