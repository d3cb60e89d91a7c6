"""`say`: a text into a sound file, or through a pipe into a player."""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any

import torch

from bark_accel import AudioStreamer, generate_with_preset

from .console import fail, out, warn
from .playback import audio_alone_on_stdout, sink, write_stream
from .progress import PartBars, progress_bars
from .request import Request
from .speech import accelerate, find_voice, limits, load_speaker, save_voice
from .text_input import check_text

if TYPE_CHECKING:
    from transformers import BarkModel

    from bark_accel.bench.models import LoadedBark
    from bark_accel.voices.preset import VoicePreset


def say(text: str, request: Request) -> None:
    """Write `request.out`, or raw PCM to stdout where it is `-`."""
    check_text(text)
    request.check()
    with audio_alone_on_stdout(request.out):
        loaded = load_speaker(request.model, text)
        inputs = {**_inputs(loaded, text, request.voice), **limits(loaded, request)}
        _warn_of_cut(loaded, text)
        accelerate(loaded, request.model)
        torch.manual_seed(request.seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Bark reads")
            preset = (_write_stream if request.stream else _write_at_once)(loaded.model, inputs, request)
        save_voice(preset, request.save_voice)


def _write_stream(model: BarkModel, inputs: dict[str, Any], request: Request) -> VoicePreset | None:
    streamer = AudioStreamer(model, policy=request.policy or "low_latency")
    write_stream(streamer, model, inputs, request.out)
    return streamer.presets[0] if streamer.presets else None


def _write_at_once(model: BarkModel, inputs: dict[str, Any], request: Request) -> VoicePreset | None:
    from bark_accel.hf.configs import sample_rate

    start = time.perf_counter()
    with progress_bars() as progress:
        waveform, preset = generate_with_preset(model, **inputs, progress=PartBars(progress))
    elapsed_s = time.perf_counter() - start
    path, rate = request.out, sample_rate(model)
    audio_s = waveform.shape[-1] / rate
    if audio_s == 0:
        fail(f"the model ended before its first sound, so {path} was not written; try another --seed or text")
    with sink(path, rate) as write:
        write(waveform[0].float().cpu().numpy())
    summary = f"{audio_s:.2f} s of audio in {elapsed_s:.2f} s (real-time factor {elapsed_s / audio_s:.2f})"
    out.print(f"wrote {path}: {summary}", markup=False, soft_wrap=True)
    return preset


def _inputs(loaded: LoadedBark, text: str, voice: str | None) -> dict[str, Any]:
    preset = find_voice(loaded, voice)
    inputs = {name: ids.to(loaded.model.device) for name, ids in loaded.inputs(text).items()}
    return inputs if preset is None else {**inputs, "history_prompt": preset}


def _warn_of_cut(loaded: LoadedBark, text: str) -> None:
    from bark_accel.bench.models import text_tokens

    tokens, limit = text_tokens(loaded, text)
    if tokens > limit:
        warn(
            f"the text has {tokens} tokens and Bark reads {limit}: the rest is cut. "
            "`bark-accel read FILE` says a text of any length."
        )
