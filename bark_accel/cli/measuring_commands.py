"""The commands that compare and measure, `demo`, `bench`, `check` and `info`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .console import friendly_errors
from .options import Device, Model, Seed


def demo(
    model: Model = None,
    seconds: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.02, help="Length of the utterance, at most. Not given: the model's own limit."),
    ] = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for the .wav files and the pictures.")] = Path("demo_out"),
) -> None:
    """Generate one utterance stock and accelerated, and compare tokens and times."""
    with friendly_errors():
        from .demo import demo as run

        run(model, seconds, seed, out)


def bench(
    seconds: Annotated[float, typer.Option(min=0.02, help="Length of the utterance.")] = 5.0,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each, taken in turns.")] = 3,
    shape: Annotated[str, typer.Option(help="bark-small or bark.")] = "bark-small",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    baselines: Annotated[
        bool, typer.Option(help="Measure stock in bfloat16 and with dynamic int8 as well (in float32 only).")
    ] = True,
    json: Annotated[Optional[Path], typer.Option(help="Write all numbers to this file.")] = None,  # noqa: UP045
    plot: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write a bar chart to this file: .png, .svg or .pdf."),
    ] = None,
) -> None:
    """Measure stock against accelerated, on random weights of real shapes."""
    with friendly_errors():
        from .bench import Settings
        from .bench import bench as run

        run(Settings(shape, dtype, seconds, repeats, baselines=baselines and dtype == "float32"), json, plot)


def check(
    model: Model = None,
    device: Device = None,
    minutes: Annotated[float, typer.Option(min=0, max=24 * 60, help="Begin nothing more after this long.")] = 4.5,
    seconds: Annotated[
        float,
        typer.Option(min=0.02, help="Length of an utterance, at most: shorter where the ten texts would not fit."),
    ] = 1.5,
    seed: Seed = 0,
    json: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write all that was found to this file, for a bug report: it names no folders of yours."),
    ] = None,
    voices: Annotated[bool, typer.Option("--voices", help="Rank the checkpoint's voices as well.")] = False,
) -> None:
    """Compare tokens, scores, times and memory with stock's on this machine: ten texts, voices, greedy and sampled."""
    with friendly_errors():
        from .check import check as run
        from .request import ModelChoice

        run(ModelChoice(model, device), minutes, seconds, seed, json, voices)


def info() -> None:
    """Show the build, the versions and the machine."""
    with friendly_errors():
        from .info import info as run

        run()
