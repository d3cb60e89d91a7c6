"""Audio into a file or a pipe, at once or while it is generated."""

from __future__ import annotations

import os
import sys
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from bark_accel import AudioStreamer, stream

from .console import UserError, fail, out
from .outputs import STDOUT
from .progress import live_line

if TYPE_CHECKING:
    from transformers import BarkModel

_INT16_MAX = 32767
_BYTES_PER_SAMPLE = 2


@contextmanager
def audio_alone_on_stdout(path: Path) -> Iterator[None]:
    """Send words to stderr where `path` says that the audio goes to stdout."""
    out.stderr = path == STDOUT
    try:
        yield
    finally:
        out.stderr = False


def write_stream(streamer: AudioStreamer, model: BarkModel, arguments: dict[str, Any], path: Path) -> None:
    """Generate and write chunk by chunk; a live line says how far the audio is."""
    rate, samples = streamer.sampling_rate, 0
    if path == STDOUT:
        out.print(f"raw PCM: s16le, mono, {rate} Hz")
    start = time.perf_counter()
    chunks = stream(model, **arguments, streamer=streamer)
    with live_line() as live:
        live.update("waiting for the first sound", refresh=True)
        # Only now is a file replaced: what fails earlier leaves it alone.
        first = next(chunks, None)
        if first is None:
            fail("the model ended before its first sound; try another --seed or text")
        first_s = time.perf_counter() - start
        with sink(path, rate) as write:
            for chunk in chain([first], chunks):
                if not write(chunk[0].numpy()):
                    live.update("the player has closed the pipe", refresh=True)
                    return
                samples += chunk.shape[1]
                live.update(_line(samples / rate, first_s, time.perf_counter() - start), refresh=True)
    if path != STDOUT:
        out.print(f"wrote {path}", markup=False, soft_wrap=True)


def _line(audio_s: float, first_s: float, elapsed_s: float) -> str:
    return f"{audio_s:.2f} s of audio, first sound after {first_s:.2f} s, real-time factor {elapsed_s / audio_s:.2f}"


@contextmanager
def sink(path: Path, rate: int) -> Iterator[Callable[[np.ndarray], bool]]:
    """Yields what writes float samples [S] and returns whether anybody still takes them.

    The suffix of `path` decides the format, as `check_file` lets it; `-` is raw PCM to stdout.
    """
    if path == STDOUT:
        yield _write_pcm
        return
    open_file = _wave_file if path.suffix.lower() == ".wav" else _other_file
    with open_file(path, rate) as write:

        def write_to_file(samples: np.ndarray) -> bool:
            with _naming(path):
                write(samples)
            return True

        yield write_to_file


@contextmanager
def _wave_file(path: Path, rate: int) -> Iterator[Callable[[np.ndarray], None]]:
    """A .wav file that is valid while it grows."""
    with path.open("wb") as file, wave.open(file, "wb") as audio:
        audio.setparams((1, _BYTES_PER_SAMPLE, rate, 0, "NONE", "not compressed"))

        def write(samples: np.ndarray) -> None:
            # Brings the header up to date, for players that follow the file.
            audio.writeframes(_pcm(samples))
            file.flush()

        yield write


@contextmanager
def _other_file(path: Path, rate: int) -> Iterator[Callable[[np.ndarray], None]]:
    with soundfile.SoundFile(path, "w", rate, channels=1) as file:
        yield file.write


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A disk that fills meanwhile is told with the name of the file."""
    try:
        yield
    except (OSError, soundfile.SoundFileError) as error:
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def _pcm(samples: np.ndarray) -> bytes:
    """Signed 16-bit little-endian."""
    return np.round(np.clip(samples, -1, 1) * _INT16_MAX).astype("<i2").tobytes()


def _write_pcm(samples: np.ndarray) -> bool:
    """Write to stdout."""
    try:
        sys.stdout.buffer.write(_pcm(samples))
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # So that Python does not try once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True
