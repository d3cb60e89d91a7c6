"""`say --stream`: audio into a file or a pipe while it is generated."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
from rich.live import Live

from bark_accel import AudioStreamer, stream

from .console import fail, out

if TYPE_CHECKING:
    from transformers import BarkModel

STDOUT = Path("-")
_INT16_MAX = 32767


def write_stream(streamer: AudioStreamer, model: BarkModel, arguments: dict[str, Any], path: Path) -> None:
    """Generate and write chunk by chunk; a live line says how far the audio is."""
    rate, samples, first_s = streamer.sampling_rate, 0, None
    start = time.perf_counter()
    with _sink(path, rate) as write, Live(console=out, auto_refresh=False) as live:
        live.update("waiting for the first sound", refresh=True)
        for chunk in stream(model, **arguments, streamer=streamer):
            elapsed_s = time.perf_counter() - start
            first_s = elapsed_s if first_s is None else first_s
            if not write(chunk[0].numpy()):
                live.update("the player has closed the pipe", refresh=True)
                return
            samples += chunk.shape[1]
            live.update(_line(samples / rate, first_s, elapsed_s), refresh=True)
    if samples == 0:
        if path != STDOUT:
            path.unlink()
        fail("the model ended before its first sound; try another --seed or text")
    if path != STDOUT:
        out.print(f"wrote {path}", markup=False, soft_wrap=True)


def _line(audio_s: float, first_s: float, elapsed_s: float) -> str:
    return f"{audio_s:.2f} s of audio, first sound after {first_s:.2f} s, real-time factor {elapsed_s / audio_s:.2f}"


@contextmanager
def _sink(path: Path, rate: int) -> Iterator[Callable[[np.ndarray], bool]]:
    """What writes samples and says whether anybody still takes them."""
    if path == STDOUT:
        yield _write_pcm
        return
    with soundfile.SoundFile(path, "w", rate, channels=1) as file:

        def write(samples: np.ndarray) -> bool:
            file.write(samples)
            # Players that follow the file find a valid header.
            file.flush()
            return True

        yield write


def _write_pcm(samples: np.ndarray) -> bool:
    """Signed 16-bit little-endian samples to stdout."""
    data = np.round(np.clip(samples, -1, 1) * _INT16_MAX).astype("<i2").tobytes()
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # So that Python does not try once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True
