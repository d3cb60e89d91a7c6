"""`corpus`: a table of texts into a folder of sound, by several processes or a Ray cluster."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import UserError, fail, numbered, out, user_errors, warn
from .outputs import check_folder
from .request import ModelChoice

if TYPE_CHECKING:
    from bark_accel.ray import CorpusSummary


@dataclass(frozen=True)
class Cluster:
    """Actors, what each has, and the Ray cluster that they run on (None: a new one of this machine)."""

    num_actors: int
    threads: int
    num_gpus: float
    address: str | None


def corpus(texts: Path, folder: Path, cluster: Cluster, choice: ModelChoice, options: dict[str, Any]) -> None:
    choice.check()
    check_folder("OUT", folder)
    if not texts.exists():
        raise UserError(f"TEXTS: expected a Parquet or .csv file, got {texts}: no such file")
    speaker = {"model": choice.name, "dtype": choice.dtype, **choice.approximations.arguments()}
    start = time.perf_counter()
    summary = _synthesize(texts, folder, cluster, {**speaker, **options})
    elapsed_s = time.perf_counter() - start
    said = f"{numbered(summary.rows, 'row')}, {summary.said_now} of them said now, {summary.seconds:.1f} s of audio"
    out.print(f"wrote {summary.manifest}: {said}, in {elapsed_s:.1f} s", markup=False, soft_wrap=True)
    if summary.failed:
        warn(f"{numbered(summary.failed, 'row')} failed: see the column error of {summary.manifest}")


def _synthesize(texts: Path, folder: Path, cluster: Cluster, options: dict[str, Any]) -> CorpusSummary:
    # Ray reports its use to its makers unless told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Before Ray itself: it says what to install where Ray is missing.
    from bark_accel.ray import synthesize_corpus  # isort: skip

    import ray

    if not ray.is_initialized():
        with user_errors(ConnectionError, ValueError):
            ray.init(address=cluster.address or "local", include_dashboard=False if cluster.address is None else None)
    resources: dict[str, Any] = {
        "num_actors": cluster.num_actors,
        "threads": cluster.threads,
        "num_gpus": cluster.num_gpus,
    }
    try:
        with user_errors(ValueError):
            return synthesize_corpus(texts, folder, **resources, **options)
    except ray.exceptions.RayError as error:
        fail(f"an actor failed, and the same command goes on from here: {error}")
