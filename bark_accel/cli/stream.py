"""`say --stream`: audio into a file or a pipe while it is generated."""

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
from rich.live import Live

from bark_accel import AudioStreamer, stream

from .console import fail, out

if TYPE_CHECKING:
    from transformers import BarkModel

STDOUT = Path("-")
_INT16_MAX = 32767
_BYTES_PER_SAMPLE = 2


def write_stream(streamer: AudioStreamer, model: BarkModel, arguments: dict[str, Any], path: Path) -> None:
    """Generate and write chunk by chunk; a live line says how far the audio is."""
    rate, samples = streamer.sampling_rate, 0
    if path == STDOUT:
        out.print(f"raw PCM: s16le, mono, {rate} Hz")
    start = time.perf_counter()
    chunks = stream(model, **arguments, streamer=streamer)
    with Live(console=out, auto_refresh=False) as live:
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
    """What writes samples and says whether anybody still takes them."""
    if path == STDOUT:
        yield _write_pcm
        return
    with path.open("wb") as file, wave.open(file, "wb") as audio:
        audio.setparams((1, _BYTES_PER_SAMPLE, rate, 0, "NONE", "not compressed"))

        def write(samples: np.ndarray) -> bool:
            # Brings the header up to date, for players that follow the file.
            audio.writeframes(_pcm(samples))
            file.flush()
            return True

        yield write


def _pcm(samples: np.ndarray) -> bytes:
    """Signed 16-bit little-endian."""
    return np.round(np.clip(samples, -1, 1) * _INT16_MAX).astype("<i2").tobytes()


def _write_pcm(samples: np.ndarray) -> bool:
    """To stdout."""
    try:
        sys.stdout.buffer.write(_pcm(samples))
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # So that Python does not try once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True
