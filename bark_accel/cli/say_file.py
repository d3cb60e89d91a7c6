"""`say --file`: a text of any length into a file or a pipe, chunk by chunk."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bark_accel import LongForm, SpokenChunk, accelerate_bark, long_form

from .console import fail, out, warn
from .progress import progress_bars
from .stream import STDOUT, sink

if TYPE_CHECKING:
    from bark_accel.bench.models import LoadedBark
    from bark_accel.hf.presets import PresetArrays

    from .say import Request


def say_file(
    loaded: LoadedBark, file: Path, path: Path, request: Request, options: dict[str, Any]
) -> PresetArrays | None:
    """Returns the voice of the first chunk that was heard, or None. `options` are of `generate`, for each chunk."""
    with progress_bars() as progress:
        task = progress.add_task("chunks", total=None)
        speech = long_form(
            accelerate_bark(loaded.model),
            loaded.any_processor,
            read_text(file),
            voice=request.voice,
            seed=request.seed,
            stream=request.stream,
            policy=request.policy or "low_latency",
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            **request.long_text,
            **options,
        )
        progress.update(task, total=len(speech))
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="chunk .* is as long as Bark can speak")
            ended, samples, heard = _write(speech, path)
    audio_s, elapsed_s = samples / speech.sampling_rate, time.perf_counter() - start
    if request.max_seconds is None:
        _warn_of_cuts([chunk.index + 1 for chunk in ended if chunk.cut])
    if len(ended) == len(speech):
        summary = f"{audio_s:.2f} s of audio, {len(speech)} chunks, in {elapsed_s:.2f} s"
        out.print(f"wrote {'the audio' if path == STDOUT else path}: {summary}", markup=False, soft_wrap=True)
    return heard


def _write(speech: LongForm, path: Path) -> tuple[list[SpokenChunk], int, PresetArrays | None]:
    """The ends of the chunks that were written (audio and voice left out), samples in all, and the first voice."""
    chunks = iter(speech)
    # Only with the first sound is a file replaced: what fails earlier leaves it alone.
    silent = []
    for chunk in chunks:
        silent.append(chunk)
        if len(chunk.audio) > 0:
            break
    else:
        fail("the model ended every chunk before its first sound; try another --seed or text")
    ended, samples, heard = [], 0, None
    with sink(path, speech.sampling_rate) as write:
        for chunk in chain(silent, chunks):
            audio = chunk.audio_and_pause
            if not write(audio.numpy()):
                out.print("the player has closed the pipe")
                break
            samples += len(audio)
            if chunk.final:
                # A book has many chunks, and the voice is that of the first that was heard.
                heard = heard or chunk.preset
                ended.append(replace(chunk, audio=torch.empty(0), preset=None))
    return ended, samples, heard


def read_text(file: Path) -> str:
    """Of a file; raises `ValueError` where there is none."""
    if not file.is_file():
        raise ValueError(f"--file: there is no file {file}")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"--file: expected a text in UTF-8, got {file} ({error.reason})") from None
    if not text.strip():
        raise ValueError(f"--file: {file} is empty: there is nothing to say")
    return text


def _warn_of_cuts(chunks: list[int]) -> None:
    if chunks:
        warn(
            f"{len(chunks)} chunks are as long as Bark can speak at once, so the ends of their texts may be missing "
            f"(chunk {', '.join(map(str, chunks))}); lower --characters-per-second"
        )
