"""The commands that speak for many, `serve` and `corpus`: options of the command line into settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from bark_accel.approximations import Approximations

from .console import friendly_errors
from .options import Device, Dtype, FitWindows, KvCacheDtype, LongCoarseWindows, MaxSeconds, Model, Seed, Voice, Weights


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
    kv_cache_dtype: KvCacheDtype = "auto",
    fit_windows: FitWindows = False,
    long_coarse_windows: LongCoarseWindows = False,
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
        from .request import ModelChoice
        from .serve import ServeOptions
        from .serve import serve as run

        approximations = Approximations(weights, kv_cache_dtype, fit_windows, long_coarse_windows)
        options = ServeOptions(
            tuple(model or ()),
            ModelChoice(None, device, None, approximations),
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
    kv_cache_dtype: KvCacheDtype = "auto",
    fit_windows: FitWindows = False,
    long_coarse_windows: LongCoarseWindows = False,
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
        approximations = Approximations(weights, kv_cache_dtype, fit_windows, long_coarse_windows)
        choice = ModelChoice(model, None, dtype, approximations)
        run(texts, out, Cluster(num_actors, threads, num_gpus, address), choice, {**speaker, **files})
