"""Whole corpora: a table of texts into a folder of sound, by the actors of a cluster."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import ray
import ray.data

from bark_accel._arguments import whole_number

from .parts import FORMATS, PartFolder
from .rows import check_columns, seed_of, with_columns
from .synthesizer import Synthesizer


@dataclass(frozen=True)
class CorpusSummary:
    """Counts of a corpus that is done: `rows` in all, of which `failed`, `said_now` in this run, `seconds` of audio."""

    rows: int
    failed: int
    said_now: int
    seconds: float
    manifest: Path


class PartMaker:
    """An actor class that says parts of a corpus and writes their files."""

    def __init__(self, files: PartFolder, speaker: dict[str, Any]):
        self._files = files
        self._synthesizer = Synthesizer(**speaker)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        counts = []
        for part, rows in zip(batch["part"], batch["rows"], strict=True):
            table = self._synthesizer(pa.ipc.open_stream(rows).read_all())
            self._files.write(int(part), table)
            counts.append(len(table))
        return {"part": list(batch["part"]), "rows": counts}


def synthesize_corpus(
    texts: str | Path | pa.Table,
    out: str | Path,
    *,
    num_actors: int = 1,
    threads: int = 1,
    num_gpus: float = 0.0,
    format: str = "parquet",
    rows_per_part: int = 32,
    retry_failed: bool = False,
    seed: int = 0,
    **synthesizer: Any,
) -> CorpusSummary:
    """Say every text of a table, on the cluster that `ray.init` joined or started.

    The result is `out/manifest.parquet`: the table with the columns that `Synthesizer` adds, but for the audio, and
    `file`. Audio is in `out/parts/*.parquet`, or as `format="wav"` in `out/audio/*.wav` (16 bits). A part of
    `rows_per_part` rows is the unit of work: its file is written at once, so that after a kill the same call goes on,
    and an actor that dies loses and doubles nothing. Neither parts nor actors change the audio; the number of threads
    may, by a rounding error.

    Parameters
    ----------
    texts : str, Path or pyarrow.Table
        A Parquet or .csv file, with columns as `Synthesizer` reads. A row without a seed has one derived from `seed=`
        and its number.
    out : str or Path
        A folder that every node sees.
    num_actors : int
        Models at once.
    threads : int
        CPUs of an actor, and its threads.
    num_gpus : float
        GPUs of an actor: 0.25 lets four share one.
    format : {"parquet", "wav"}
    rows_per_part : int
        Rows for one file. An actor's engine runs as many as `max_rows` of them at once.
    retry_failed : bool
        Make parts with failed rows again.
    synthesizer
        Other arguments of `Synthesizer`.

    Raises
    ------
    ValueError
        Bad arguments, an actor that no node of the cluster has room for, a table without texts, or a folder that holds
        another run; nothing was said.
    OSError
        No such file.
    """
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(map(repr, FORMATS))}, got {format!r}")
    files = PartFolder(Path(out).absolute(), format, whole_number("rows_per_part", rows_per_part, 1))
    options = actor_options(num_actors, threads, num_gpus)
    table = _with_seeds(texts if isinstance(texts, pa.Table) else read_texts(Path(texts)), seed)
    if "file" in table.column_names or len({*table.column_names}) < len(table.column_names):
        raise ValueError(
            f"texts: expected columns of different names, none of them 'file', got {', '.join(table.column_names)}"
        )
    _check_room(threads, num_gpus)
    speaker = {**synthesizer, "seed": seed, "threads": threads}
    parts = math.ceil(len(table) / rows_per_part)
    with files.locked(_as_json({"texts": _digest(table), **_sound_settings(speaker)})):
        missing = files.missing(parts, retry_failed=retry_failed)
        said = _make(files, table, missing, speaker, options)
        manifest = files.write_manifest(parts)
    failed = pc.sum(pc.is_valid(manifest["error"])).as_py()
    seconds = pc.sum(manifest["seconds"]).as_py() or 0.0
    return CorpusSummary(len(manifest), failed, said, seconds, files.folder / "manifest.parquet")


def actor_options(num_actors: int, threads: int, num_gpus: float) -> dict[str, Any]:
    """Arguments of `map_batches` for so many actors; raises `ValueError` for what none can have."""
    if not (isinstance(num_gpus, (int, float)) and 0 <= num_gpus < math.inf) or (num_gpus > 1 and num_gpus % 1):
        raise ValueError(f"num_gpus: expected a fraction of one GPU, or a whole number of them, got {num_gpus!r}")
    size = whole_number("num_actors", num_actors, 1)
    return {
        "compute": ray.data.ActorPoolStrategy(size=size),
        "num_cpus": whole_number("threads", threads, 1),
        # Ray tells 0 from None: a device is hidden from actors that asked for none.
        "num_gpus": num_gpus or None,
    }


def _check_room(threads: int, num_gpus: float) -> None:
    """Raise `ValueError` for an actor that Ray would wait for without end: more than any node has."""
    if not ray.is_initialized():
        ray.init()
    # Of an autoscaler, which may start larger nodes. Ray's own libraries read it there; older versions have none.
    config_of_autoscaler = getattr(ray._private.state.state, "get_cluster_config", lambda: None)
    if config_of_autoscaler() is not None:
        return
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("CPU", 0) >= threads and node.get("GPU", 0) >= num_gpus for node in nodes):
        return
    had = "; ".join(sorted({f"{node.get('CPU', 0):g} and {node.get('GPU', 0):g}" for node in nodes}))
    raise ValueError(
        f"threads, num_gpus: expected at most the CPUs and GPUs of one node of the cluster ({had}), "
        f"got {threads} and {num_gpus:g}"
    )


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they are read again; raises `ValueError` for what JSON does not hold."""
    try:
        return json.loads(json.dumps(settings))
    except TypeError as error:
        raise ValueError(f"expected arguments of numbers, strings and lists for a corpus ({error})") from error


def read_texts(path: Path) -> pa.Table:
    """Read a Parquet or .csv file; raises `ValueError` for another kind."""
    try:
        if path.suffix.lower() == ".csv":
            # A text may be a number, and keeps its zeros.
            strings = {name: pa.string() for name in ("text", "voice")}
            return pa.csv.read_csv(path, convert_options=pa.csv.ConvertOptions(column_types=strings))
        return pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"texts: expected a Parquet or .csv file, got {path} ({error})") from error


def _with_seeds(table: pa.Table, seed: int) -> pa.Table:
    check_columns(table.column_names, "texts")
    if len(table) == 0:
        raise ValueError("texts: expected at least one row, got none")
    given = table["seed"].to_pylist() if "seed" in table.column_names else [None] * len(table)
    seeds = [seed_of(value, seed, row) for row, value in enumerate(given)]
    return with_columns(table, {"seed": pa.array(seeds, pa.int64())})


def _make(
    files: PartFolder, table: pa.Table, parts: list[int], speaker: dict[str, Any], options: dict[str, Any]
) -> int:
    """Make parts; the number of their rows."""
    if not parts:
        return 0
    size = files.rows_per_part
    # A block for each part: what an actor takes at once.
    items = [{"part": part, "rows": _packed(table.slice(part * size, size))} for part in parts]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    arguments = {"files": files, "speaker": speaker}
    made = dataset.map_batches(PartMaker, batch_size=1, fn_constructor_kwargs=arguments, **options)
    return sum(row["rows"] for row in made.iter_rows())


def _packed(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _digest(table: pa.Table) -> str:
    """Hash of the whole table, its columns' names and types included, however its file was cut into chunks."""
    return hashlib.sha256(_packed(table.combine_chunks())).hexdigest()


def _sound_settings(speaker: dict[str, Any]) -> dict[str, Any]:
    """Arguments that the audio depends on, defaults included."""
    bound = inspect.signature(Synthesizer).bind(**speaker)
    bound.apply_defaults()
    return {name: value for name, value in bound.arguments.items() if name not in ("threads", "max_rows", "device")}
