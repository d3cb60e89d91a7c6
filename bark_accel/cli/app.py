"""The typer app. Commands import what they need when they run, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .console import UserError, friendly_errors, hint

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
Weights = Annotated[
    str,
    typer.Option(help="same, float16, bfloat16, int8, w8a8: smaller weights, faster, not stock's tokens."),
]
Device = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Where the model runs: cpu, cuda, cuda:1 ... Not given: cpu."),
]
Dtype = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="The model's own dtype: float32, float16 or bfloat16. Not given: the checkpoint's."),
]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the random numbers.")]
Out = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        help="The file to write: .wav, .flac, .ogg or .mp3; with --stream, - is raw PCM (s16le) to stdout.",
    ),
]
Voice = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(metavar="PRESET", help="A voice: an .npz file, or a name that the checkpoint knows."),
]
MaxSeconds = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(min=0.02, help="Stop (each chunk) after this much audio. Not given: the model's own limit."),
]
Stream = Annotated[bool, typer.Option("--stream", help="Write the audio while it is generated.")]
Policy = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="With --stream: low_latency (default), preview (two codebooks only) or exact."),
]
SaveVoice = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Write the voice that was heard (of a file: its first chunk's) to this .npz file."),
]


def _print_version(asked: bool) -> None:
    if asked:
        from bark_accel import __version__

        typer.echo(f"bark_accel {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


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
    out: Out,
    text: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="What to say, up to 256 tokens; a longer text with `read`.", show_default=False),
    ] = None,
    model: Model = None,
    voice: Voice = None,
    seed: Seed = 0,
    max_seconds: MaxSeconds = None,
    stream: Stream = False,
    policy: Policy = None,
    save_voice: SaveVoice = None,
    weights: Weights = "same",
    device: Device = None,
    dtype: Dtype = None,
    # The old spelling of `read`.
    file: Annotated[Optional[Path], typer.Option(hidden=True)] = None,  # noqa: UP045
    carry_voice: Annotated[bool, typer.Option("--carry-voice", hidden=True)] = False,
    work_dir: Annotated[Optional[Path], typer.Option(hidden=True)] = None,  # noqa: UP045
    batch_size: Annotated[Optional[int], typer.Option(min=1, hidden=True)] = None,  # noqa: UP045
    language: Annotated[Optional[str], typer.Option(hidden=True)] = None,  # noqa: UP045
    characters_per_second: Annotated[Optional[float], typer.Option(min=0.1, hidden=True)] = None,  # noqa: UP045
) -> None:
    """Say a text into a sound file, or through a pipe into a player."""
    with friendly_errors():
        from .request import ModelChoice, ReadOptions, Request
        from .say import say as run

        request = Request(
            out, ModelChoice(model, device, dtype, weights), voice, seed, max_seconds, stream, policy, save_voice
        )
        options = ReadOptions(carry_voice or None, work_dir, batch_size, language, characters_per_second)
        if file is not None:
            _say_file(text, file, request, options)
            return
        if text is None:
            raise UserError("expected a text, got none; `bark-accel read FILE` says what a file holds")
        if options.given():
            option = next(iter(options.given())).replace("_", "-")
            raise UserError(f"--{option}: expected a file with it: bark-accel read FILE --{option} ...")
        run(text, request)


def _say_file(text: str | None, file: Path, request: Any, options: Any) -> None:
    from .read import read as run

    if text is not None:
        raise UserError("expected a text or --file, got both")
    hint("`bark-accel say --file FILE` is now `bark-accel read FILE`; the old spelling still works")
    run(file, "utf-8", request, options)


@app.command()
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

        choice = ModelChoice(model, device, dtype, weights)
        request = Request(out, choice, voice, seed, max_seconds, stream, policy, save_voice)
        options = ReadOptions(carry_voice or None, work_dir, batch_size, language, characters_per_second)
        run(file, encoding, request, options)


@app.command()
def serve(
    model: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="[NAME=]PATH_OR_ID[:WEIGHTS]",
            help="A model that clients may name; several times for several, loaded when they are first asked for. Not "
            "given: the small Bark that comes with bark_accel.",
        ),
    ] = None,
    weights: Weights = "same",
    device: Device = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is all of them.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    wyoming_port: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, max=65535, help="Listen for Home Assistant here too, without keys. Not given: not at all."),
    ] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Utterances of a model generated at once.")] = 8,
    max_queued: Annotated[int, typer.Option(min=0, help="Requests that may wait; one more gets 429.")] = 32,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds for a request.")] = 120.0,
    drain: Annotated[int, typer.Option(min=0, help="Seconds that requests have to finish after SIGTERM.")] = 30,
    max_body: Annotated[int, typer.Option(min=1024, help="Bytes of a request, uploads included.")] = 1 << 20,
    max_memory: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.1, help="GiB of loaded models; idle ones are unloaded. Not given: no bound."),
    ] = None,
    api_key_file: Annotated[Optional[Path], typer.Option(help="Accepted API keys, one a line.")] = None,  # noqa: UP045
    cors_origin: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Origin of another site whose pages may call, such as https://example.org."),
    ] = None,
    allow_host: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Accepted Host header. Not given: this machine's own names at 127.0.0.1, any elsewhere."),
    ] = None,
    voices_dir: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder that keeps uploaded voices. Not given: they end with the server."),
    ] = None,
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Threads of a step. Not given: all cores; one for the small Bark."),
    ] = None,
    replicas: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1,
            help="Processes of each model, on cores of their own, with one copy of the weights; --max-rows is then of "
            "each. Not given: none, the server's process speaks itself.",
        ),
    ] = None,
    threads_per_replica: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Cores of each. Not given: all, shared out equally; one for the small Bark."),
    ] = None,
) -> None:
    """Serve speech over HTTP: OpenAI's API, streamed, and a page to try it."""
    with friendly_errors():
        from .serve import ServeOptions
        from .serve import serve as run

        options = ServeOptions(
            tuple(model or ()),
            weights,
            device,
            host,
            port,
            wyoming_port,
            max_rows,
            max_queued,
            deadline,
            drain,
            max_body,
            max_memory,
            api_key_file,
            tuple(cors_origin or ()),
            tuple(allow_host or ()),
            voices_dir,
            threads,
            replicas,
            threads_per_replica,
        )
        run(options)


@app.command()
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


@app.command()
def check(
    model: Model = None,
    device: Device = None,
    minutes: Annotated[float, typer.Option(min=0, help="Begin no other utterance after this long.")] = 3.0,
    seconds: Annotated[float, typer.Option(min=0.02, help="Length of an utterance, at most.")] = 1.5,
    seed: Seed = 0,
    json: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write all that was found to this file, for a bug report: it names no folders of yours."),
    ] = None,
    voices: Annotated[
        bool, typer.Option("--voices", help="Rank the checkpoint's voices as well, in half of the time.")
    ] = False,
) -> None:
    """Compare tokens, scores, times and memory with stock's on this machine: ten texts, voices, greedy and sampled."""
    with friendly_errors():
        from .check import check as run
        from .request import ModelChoice

        run(ModelChoice(model, device), minutes, seconds, seed, json, voices)


@app.command()
def corpus(
    texts: Annotated[
        Path, typer.Argument(help="A Parquet or .csv file with a column text, and if you like voice and seed.")
    ],
    out: Annotated[
        Path, typer.Argument(help="A folder that every node sees; the same command goes on with it after a stop.")
    ],
    num_actors: Annotated[int, typer.Option(min=1, help="Models at once, each in a process of its own.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPUs of each.")] = 1,
    num_gpus: Annotated[float, typer.Option(min=0, help="GPUs of each: 0.25 lets four share one.")] = 0.0,
    address: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Of a Ray cluster, or auto for this node's. Not given: a new one, of this machine alone."),
    ] = None,
    format: Annotated[str, typer.Option(help="parquet (audio in tables), or wav (a file for each row).")] = "parquet",
    rows_per_part: Annotated[int, typer.Option(min=1, help="Rows of a file, said by one actor.")] = 32,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Say files with failed rows again.")] = False,
    model: Model = None,
    voice: Voice = None,
    seed: Seed = 0,
    max_seconds: MaxSeconds = None,
    weights: Weights = "same",
    device: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Where models run. Not given: cuda with --num-gpus, else cpu."),
    ] = None,
    dtype: Dtype = None,
) -> None:
    """Say every row of a table, on all cores of a machine or on a Ray cluster, into Parquet or .wav files."""
    with friendly_errors():
        from .corpus import Cluster
        from .corpus import corpus as run
        from .request import ModelChoice

        speaker = {"voice": voice, "seed": seed, "max_seconds": max_seconds, "device": device}
        files = {"format": format, "rows_per_part": rows_per_part, "retry_failed": retry_failed}
        choice = ModelChoice(model, None, dtype, weights)
        run(texts, out, Cluster(num_actors, threads, num_gpus, address), choice, {**speaker, **files})


@app.command()
def info() -> None:
    """Show the build, the versions and the machine."""
    with friendly_errors():
        from .info import info as run

        run()
