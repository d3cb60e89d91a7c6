"""The commands that write speech, `say` and `read`: options of the command line into requests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from bark_accel.approximations import Approximations

from .console import friendly_errors
from .options import (
    Device,
    Dtype,
    FitWindows,
    KvCacheDtype,
    LongCoarseWindows,
    MaxSeconds,
    Model,
    Out,
    Policy,
    SaveVoice,
    Seed,
    Stream,
    Voice,
    Weights,
)


def say(
    text: Annotated[str, typer.Argument(help="What to say, up to 256 tokens; a longer text with `read`.")],
    out: Out,
    model: Model = None,
    voice: Voice = None,
    seed: Seed = 0,
    max_seconds: MaxSeconds = None,
    stream: Stream = False,
    policy: Policy = None,
    save_voice: SaveVoice = None,
    weights: Weights = "same",
    kv_cache_dtype: KvCacheDtype = "auto",
    fit_windows: FitWindows = False,
    long_coarse_windows: LongCoarseWindows = False,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Say a text into a sound file, or through a pipe into a player."""
    with friendly_errors():
        from .request import ModelChoice, Request
        from .say import say as run

        approximations = Approximations(weights, kv_cache_dtype, fit_windows, long_coarse_windows)
        choice = ModelChoice(model, device, dtype, approximations)
        run(text, Request(out, choice, voice, seed, max_seconds, stream, policy, save_voice))


def read(
    file: Annotated[
        Path, typer.Argument(help="A text of any length; blank lines separate paragraphs; - is standard input.")
    ],
    out: Out,
    encoding: Annotated[str, typer.Option(help="Of the file, such as latin-1 or utf-16.")] = "utf-8",
    model: Model = None,
    voice: Voice = None,
    seed: Seed = 0,
    max_seconds: MaxSeconds = None,
    stream: Stream = False,
    policy: Policy = None,
    save_voice: SaveVoice = None,
    weights: Weights = "same",
    kv_cache_dtype: KvCacheDtype = "auto",
    fit_windows: FitWindows = False,
    long_coarse_windows: LongCoarseWindows = False,
    device: Device = None,
    dtype: Dtype = None,
    carry_voice: Annotated[
        bool, typer.Option("--carry-voice", help="Say each chunk in the voice of the one before.")
    ] = False,
    work_dir: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Keep finished chunks here; the same command then goes on after a stop."),
    ] = None,
    batch_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Chunks generated at once. Not given: 4, or 1 with --stream or --carry-voice."),
    ] = None,
    language: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="ISO 639-1 code, for the rules of sentences. Not given: en."),
    ] = None,
    characters_per_second: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.1, help="How fast the voice speaks, for chunks of 13 s. Not given: by language."),
    ] = None,
) -> None:
    """Read a text file of any length into a sound file, in chunks, or through a pipe into a player."""
    with friendly_errors():
        from .read import read as run
        from .request import ModelChoice, ReadOptions, Request

        approximations = Approximations(weights, kv_cache_dtype, fit_windows, long_coarse_windows)
        choice = ModelChoice(model, device, dtype, approximations)
        request = Request(out, choice, voice, seed, max_seconds, stream, policy, save_voice)
        options = ReadOptions(carry_voice or None, work_dir, batch_size, language, characters_per_second)
        run(file, encoding, request, options)
