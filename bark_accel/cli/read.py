"""`read`: a text of any length into a sound file or a pipe, chunk by chunk."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bark_accel import LongForm, SpokenChunk, long_form
from bark_accel.bench.models import SMALL_CHUNK_S

from .console import fail, numbered, out, user_errors, warn
from .outputs import STDOUT
from .playback import audio_alone_on_stdout, sink
from .progress import progress_bars
from .request import ReadOptions, Request
from .speech import accelerate, find_voice, limits, load_speaker, save_voice
from .text_input import read_text

if TYPE_CHECKING:
    from bark_accel.bench.models import LoadedBark
    from bark_accel.voices.preset import VoicePreset


def read(file: Path, encoding: str, request: Request, options: ReadOptions) -> None:
    """Write `request.out`, or raw PCM to stdout where it is `-`."""
    request.check()
    options.check()
    text = read_text(file, encoding)
    with audio_alone_on_stdout(request.out):
        loaded = load_speaker(request.model, text)
        accelerate(loaded, request.model)
        heard = _read(loaded, text, request, options)
        save_voice(heard, request.save_voice)


def _read(loaded: LoadedBark, text: str, request: Request, options: ReadOptions) -> VoicePreset | None:
    """Returns the voice of the first chunk that was heard, or None."""
    with progress_bars() as progress:
        task = progress.add_task("chunks", total=None)

        def on_progress(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        speech = _plan(loaded, text, request, options, on_progress)
        progress.update(task, total=len(speech))
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="chunk .* is as long as Bark can speak")
            ended, samples, heard = _write(speech, request.out)
    audio_s, elapsed_s = samples / speech.sampling_rate, time.perf_counter() - start
    if request.max_seconds is None:
        _warn_of_cuts([chunk.index + 1 for chunk in ended if chunk.cut])
    if len(ended) == len(speech):
        made = "the audio" if request.out == STDOUT else request.out
        summary = f"{audio_s:.2f} s of audio, {numbered(len(speech), 'chunk')}, in {elapsed_s:.2f} s"
        out.print(f"wrote {made}: {summary}", markup=False, soft_wrap=True)
    return heard


def _plan(
    loaded: LoadedBark, text: str, request: Request, options: ReadOptions, on_progress: Callable[[int, int], None]
) -> LongForm:
    lengths = {} if loaded.vocabulary is None else {"max_chunk_s": SMALL_CHUNK_S}
    arguments = {**lengths, **options.given(), **limits(loaded, request)}
    voice = find_voice(loaded, request.voice)
    with user_errors(ValueError):
        return long_form(
            loaded.model,
            loaded.any_processor,
            text,
            voice=voice,
            seed=request.seed,
            stream=request.stream,
            policy=request.policy or "low_latency",
            on_progress=on_progress,
            **arguments,
        )


def _write(speech: LongForm, path: Path) -> tuple[list[SpokenChunk], int, VoicePreset | None]:
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
                ended.append(replace(chunk, audio=torch.empty(0, dtype=torch.float32, device="cpu"), preset=None))
    return ended, samples, heard


def _warn_of_cuts(chunks: list[int]) -> None:
    if chunks:
        which = f"{numbered(len(chunks), 'chunk')} (chunk {', '.join(map(str, chunks))})"
        warn(
            f"{which} as long as Bark can speak at once, so the end of the text may be missing; "
            "lower --characters-per-second"
        )
