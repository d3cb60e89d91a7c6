"""The typer app. Commands import what they need when they run, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .console import friendly_errors

app = typer.Typer(
    help="Bark text-to-speech, accelerated.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# typer reads annotations at run time, so these are spelled as Python 3.10's typing has them.
Model = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--model",
        metavar="PATH_OR_ID",
        help="A folder or a Hub model id, such as suno/bark-small. Not given: the small Bark that comes with "
        "bark_accel, which says digits and short phrases.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the random numbers.")]


@app.command()
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


@app.command()
def say(
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="The .wav file to write; with --stream, - is raw PCM (s16le) to stdout."),
    ],
    text: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="What to say, up to 256 tokens; a longer text with --file.", show_default=False),
    ] = None,
    model: Model = None,
    voice: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="PRESET", help="A voice: an .npz file, or a name that the checkpoint knows."),
    ] = None,
    seed: Seed = 0,
    max_seconds: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.02, help="Stop (each chunk) after this much audio. Not given: the model's own limit."),
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Write the audio while it is generated.")] = False,
    policy: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="With --stream: low_latency (default), preview (two codebooks only) or exact."),
    ] = None,
    save_voice: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write the voice that was heard (of --file: its first chunk's) to this .npz file."),
    ] = None,
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Say this text file, of any length, in chunks; blank lines separate paragraphs."),
    ] = None,
    carry_voice: Annotated[
        bool, typer.Option("--carry-voice", help="With --file: say each chunk in the voice of the one before.")
    ] = False,
    work_dir: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="With --file: keep finished chunks here; the same command then goes on after a stop."),
    ] = None,
    batch_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1, help="With --file: chunks generated at once. Not given: 4, or 1 with --stream or --carry-voice."
        ),
    ] = None,
    language: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="With --file: ISO 639-1 code, for the rules of sentences. Not given: en."),
    ] = None,
    characters_per_second: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.1, help="With --file: how fast the voice speaks, for chunks of 13 s. Not given: 14."),
    ] = None,
) -> None:
    """Say a text into a .wav file, or through a pipe into a player."""
    with friendly_errors():
        from .say import Request
        from .say import say as run

        options = {
            "carry_voice": carry_voice or None,
            "work_dir": work_dir,
            "batch_size": batch_size,
            "language": language,
            "characters_per_second": characters_per_second,
        }
        long_text = {option: value for option, value in options.items() if value is not None}
        run(Request(text, voice, seed, max_seconds, stream, policy, save_voice, file, long_text), out, model)


@app.command()
def bench(
    seconds: Annotated[float, typer.Option(min=0.02, help="Length of the utterance.")] = 5.0,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each, taken in turns.")] = 3,
    shape: Annotated[str, typer.Option(help="bark-small or bark.")] = "bark-small",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    json: Annotated[Optional[Path], typer.Option(help="Write all numbers to this file.")] = None,  # noqa: UP045
    plot: Annotated[Optional[Path], typer.Option(help="Write a bar chart to this PNG.")] = None,  # noqa: UP045
) -> None:
    """Measure stock against accelerated, on random weights of real shapes."""
    with friendly_errors():
        from .bench import Settings
        from .bench import bench as run

        run(Settings(shape, dtype, seconds, repeats), json, plot)


@app.command()
def info() -> None:
    """Show the build, the versions and the machine."""
    from .info import info as run

    run()
