"""`say`: text to a .wav file."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bark_accel import AudioStreamer, accelerate_bark, save_voice_preset
from bark_accel.streaming.streamer import POLICIES

from .console import fail, out, warn
from .demo import load, write_wav
from .progress import StageBars, progress_bars
from .say_file import read_text, say_file
from .stream import STDOUT, write_stream

if TYPE_CHECKING:
    from transformers import BarkModel

    from bark_accel.bench.models import LoadedBark
    from bark_accel.hf.presets import PresetArrays

# The small Bark has learnt to say short utterances.
_SMALL_CHUNK_S = 3.0


@dataclass(frozen=True)
class Request:
    """What to say, whose voice, how long at most (seconds; None: the model's own limit), and whether as it comes.

    Either `text` or `file`, with `long_text` arguments of `long_form`.
    """

    text: str | None
    voice: str | None
    seed: int
    max_seconds: float | None
    stream: bool = False
    policy: str | None = None
    save_voice: Path | None = None
    file: Path | None = None
    long_text: dict[str, Any] = field(default_factory=dict)


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
    if (request.text is None) == (request.file is None):
        raise ValueError("expected a text or --file, " + ("got neither" if request.text is None else "got both"))
    if request.text is not None and not request.text.strip():
        raise ValueError("the text is empty: there is nothing to say")
    if request.file is not None:
        read_text(request.file)
    elif request.long_text:
        option = next(iter(request.long_text)).replace("_", "-")
        raise ValueError(f"--{option}: expected --file with it")
    if not request.stream and request.policy is not None:
        raise ValueError(f"--policy {request.policy}: expected --stream with it")
    if request.policy is not None and request.policy not in POLICIES:
        raise ValueError(f"--policy: expected one of {', '.join(POLICIES)}, got {request.policy}")
    if path == STDOUT and not request.stream:
        raise ValueError("--out -: expected --stream with it; without, name a .wav file")
    for option, file in (("--out", path), ("--save-voice", request.save_voice)):
        if file is not None and (file.is_dir() or not file.parent.is_dir()):
            raise ValueError(f"{option}: expected a file in an existing folder, got {file}")
    if request.save_voice is not None:
        _check_save_voice(request)


def _check_save_voice(request: Request) -> None:
    if request.save_voice is not None and request.save_voice.suffix != ".npz":
        raise ValueError(f"--save-voice: expected a name that ends in .npz, got {request.save_voice}")
    if request.stream and request.policy == "preview":
        raise ValueError("--save-voice: expected another --policy than preview with it, which makes no fine codes")


def _say(request: Request, path: Path, name: str | None) -> None:
    loaded = load(name)
    _check_words(loaded, request.text or "" if request.file is None else read_text(request.file))
    if loaded.vocabulary is not None:
        request = replace(request, long_text={"max_chunk_s": _SMALL_CHUNK_S, **request.long_text})
    if request.file is not None:
        preset = say_file(loaded, request.file, path, request, _options(loaded.model, request))
    else:
        preset = _say_text(loaded, request.text or "", path, request)
    _save_voice(preset, request.save_voice)


def _check_words(loaded: LoadedBark, text: str) -> None:
    from bark_accel.bench.models import text_tokens, unknown_words

    if text_tokens(loaded, text)[0] == 0:
        raise ValueError("the text has no words: there is nothing to say")
    unknown = [] if loaded.vocabulary is None else unknown_words(loaded, text)
    if unknown:
        raise ValueError(
            f"{loaded.name} does not know: {', '.join(unknown)}. It only says digits and these words: "
            f"{', '.join(loaded.vocabulary or ())}. For any other text name a model, such as --model suno/bark-small"
        )


def _save_voice(preset: PresetArrays | None, path: Path | None) -> None:
    if path is None:
        return
    if preset is None:
        fail(f"nothing was said to its end, so {path} was not written")
    save_voice_preset(path, preset)
    out.print(f"wrote {path}: the voice", markup=False, soft_wrap=True)


def _say_text(loaded: LoadedBark, text: str, path: Path, request: Request) -> PresetArrays | None:
    inputs = _inputs(loaded, text, request.voice)
    _warn_of_cut(loaded, text)
    model = accelerate_bark(loaded.model)
    options = _options(model, request)
    torch.manual_seed(request.seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Bark reads")
        if not request.stream:
            return _write_at_once(model, inputs, options, path)
        streamer = AudioStreamer(model, policy=request.policy or "low_latency")
        write_stream(streamer, model, {**inputs, **options}, path)
        return streamer.presets[0] if streamer.presets else None


def _write_at_once(model: BarkModel, inputs: dict[str, Any], options: dict[str, Any], path: Path) -> PresetArrays:
    from bark_accel.bench.models import sample_rate

    start = time.perf_counter()
    waveform, preset = _generate(model, inputs, options)
    elapsed_s = time.perf_counter() - start
    rate = sample_rate(model)
    audio_s = waveform.shape[-1] / rate
    if audio_s == 0:
        fail(f"the model ended before its first sound, so {path} was not written; try another --seed or text")
    write_wav(path, waveform, rate)
    summary = f"{audio_s:.2f} s of audio in {elapsed_s:.2f} s (real-time factor {elapsed_s / audio_s:.2f})"
    out.print(f"wrote {path}: {summary}", markup=False, soft_wrap=True)
    return preset


def _options(model: BarkModel, request: Request) -> dict[str, Any]:
    from bark_accel.bench.models import semantic_tokens

    if request.max_seconds is None:
        return {}
    return {"semantic_max_new_tokens": semantic_tokens(model, request.max_seconds)}


def _generate(model: BarkModel, inputs: dict[str, Any], options: dict[str, Any]) -> tuple[torch.Tensor, PresetArrays]:
    from bark_accel.bench.models import coarse_per_semantic, max_semantic_tokens
    from bark_accel.hf.presets import recorded_presets
    from bark_accel.hf.stage_trace import record_stages

    limit = options.get("semantic_max_new_tokens", max_semantic_tokens(model))
    with progress_bars() as progress:
        bars = StageBars(progress, "", limit, coarse_per_semantic(model))
        with record_stages(model, bars.start) as record:
            waveform = model.generate(**inputs, **options, streamer=bars)
        bars.close()
    (preset,) = recorded_presets(model, record, [waveform.shape[-1]])
    return waveform, preset


def _inputs(loaded: LoadedBark, text: str, voice: str | None) -> dict[str, Any]:
    from bark_accel.hf.voices import resolve_voice

    preset = resolve_voice(loaded.processor, voice)
    return loaded.inputs(text) if preset is None else {**loaded.inputs(text), "history_prompt": preset}


def _warn_of_cut(loaded: LoadedBark, text: str) -> None:
    from bark_accel.bench.models import text_tokens

    tokens, limit = text_tokens(loaded, text)
    if tokens > limit:
        warn(f"the text has {tokens} tokens and Bark reads {limit}: the rest is cut. --file says a text of any length.")
