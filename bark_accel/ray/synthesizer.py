"""The actor of `ray.data.Dataset.map_batches` that says texts."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data.block import BlockAccessor

from bark_accel import BarkEngine, EngineClosed, SpeechRequest, accelerate_bark, acceleration_report, batch_inputs
from bark_accel.approximations import Approximations
from bark_accel.bench.models import load_bark, quiet_transformers, semantic_tokens, unknown_words
from bark_accel.hf.configs import sample_rate

from .rows import check_columns, is_missing, seed_of, spoken_columns, with_columns

# An actor queues as many rows as it is given at once.
_ANY_NUMBER = 2**31


@dataclass(frozen=True)
class _Said:
    """A row that was said, or its error."""

    seed: int | None
    audio: np.ndarray | None
    error: str | None
    took_s: float


class Synthesizer:
    """Says the texts of a table; an actor class for `ray.data.Dataset.map_batches`.

    The model is loaded once for each actor. Rows of a batch share the steps of a `BarkEngine`, and the audio of each is
    what `torch.manual_seed(seed)` and `model.generate` give for it alone, whatever batch it comes in, to the bit on a
    CPU with the same number of threads.

        spoken = ray.data.read_parquet("texts.parquet").map_batches(
            Synthesizer, fn_constructor_kwargs={"model": "suno/bark-small"}, batch_size=32, concurrency=4, num_cpus=1
        )

    Columns that are read: `text`, `voice` (a name of the checkpoint's, or an .npz file that every node sees; empty:
    `voice=` below), `seed` (empty: one derived from `seed=`, the text and the voice). Others are kept. Added are
    `audio` (list of float32, None where the row failed), `sampling_rate`, `seconds` of audio, `seed`, `error` (None, or
    why the row failed: the others go on) and `report` (JSON: stages that fell back, precision, threads, GPUs, node,
    process, seconds it took beside its neighbours).

    Parameters
    ----------
    model : str, optional
        A folder that every node sees, or a model id of the Hub. None: the small Bark that comes with the package.
    voice : str, optional
        Voice of rows without one. None: no voice.
    seed : int
        For rows without a seed.
    weights, kv_cache_dtype, fit_windows, long_coarse_windows
        As in `accelerate_bark`; a row's audio is then what `generate` gives with them.
    device : str, optional
        None: the GPU that Ray gave the actor (`num_gpus=`, also a fraction), or where it gave none, the CPU.
    dtype : str, optional
        The model's own: `"float32"`, `"float16"` or `"bfloat16"`. None: the checkpoint's.
    threads : int, optional
        torch's threads. None: as many as the CPUs that Ray gave the actor (`num_cpus=`).
    max_rows : int
        Rows that share a step.
    max_seconds : float, optional
        Longest audio of a row. None: the model's own limit.
    generate_kwargs
        Other arguments of `model.generate` for all rows.

    Raises
    ------
    OSError, ValueError
        No such model, one without a tokenizer, or what `accelerate_bark` raises.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        voice: str | None = None,
        seed: int = 0,
        weights: str = "same",
        kv_cache_dtype: str = "auto",
        fit_windows: bool = False,
        long_coarse_windows: bool = False,
        device: str | None = None,
        dtype: str | None = None,
        threads: int | None = None,
        max_rows: int = 8,
        max_seconds: float | None = None,
        **generate_kwargs: Any,
    ):
        given = _given_to_actor("CPU")
        if threads is not None or given:
            torch.set_num_threads(threads or max(1, int(given)))
        quiet_transformers()
        self._loaded = load_bark(model)
        if self._loaded.processor is None:
            raise ValueError(f"model: expected one with a tokenizer, got {self._loaded.processor_problem}")
        module: torch.nn.Module = self._loaded.model
        module.to(
            device=device or ("cuda" if _given_to_actor("GPU") > 0 else "cpu"),
            dtype=None if dtype is None else getattr(torch, dtype),
        )
        # A row whose text would be cut fails.
        self._approximations = Approximations(weights, kv_cache_dtype, fit_windows, long_coarse_windows)
        accelerate_bark(self._loaded.model, **self._approximations.arguments(), fix_stock_bugs=["cut_text"])
        self._arguments = dict(generate_kwargs)
        if max_seconds is not None:
            self._arguments["semantic_max_new_tokens"] = semantic_tokens(self._loaded.model, max_seconds)
        self._voice, self._seed = voice, seed
        self._engine = BarkEngine(self._loaded.model, max_rows=max_rows, max_queued=_ANY_NUMBER)

    def __call__(self, batch: Any) -> pa.Table:
        """Say a batch of any of Ray's formats: a table of its columns and the added ones.

        Raises `ValueError` for columns that do not fit, and `EngineClosed` where the engine has ended.
        """
        table = BlockAccessor.for_block(BlockAccessor.batch_to_block(batch)).to_arrow()
        check_columns(table.column_names, "batch")
        rows = table.select([name for name in ("text", "voice", "seed") if name in table.column_names]).to_pylist()
        start = time.perf_counter()
        begun = [self._begin(row) for row in rows]
        said = [self._end(*row, start) for row in begun]
        columns = zip(*((one.seed, one.audio, one.error, self._report(one)) for one in said), strict=True)
        seeds, audio, errors, reports = map(list, columns) if said else ([], [], [], [])
        rate = sample_rate(self._loaded.model)
        return with_columns(table, spoken_columns(seeds, audio, rate, errors, reports))

    def close(self) -> None:
        """End the engine; an actor that ends does it as well."""
        self._engine.close()

    def _begin(self, row: dict[str, Any]) -> tuple[int | None, SpeechRequest | Exception]:
        """Queue a row."""
        seed = None
        try:
            text, voice = row["text"], self._voice if is_missing(row.get("voice")) else row["voice"]
            if not isinstance(text, str):
                raise TypeError(f"text: expected a str, got {type(text).__name__}")
            seed = seed_of(row.get("seed"), self._seed, text, voice)
            self._check_words(text)
            inputs = batch_inputs(self._loaded.processor, [text], [voice]).to(self._loaded.model.device)
            return seed, self._engine.submit(**inputs, seed=seed, **self._arguments)
        except (OSError, TypeError, ValueError) as error:
            return seed, error

    def _end(self, seed: int | None, request: SpeechRequest | Exception, start: float) -> _Said:
        """Wait for a row."""
        error = request if isinstance(request, Exception) else None
        audio = None
        if not isinstance(request, Exception):
            try:
                audio = request.result().numpy()
            except EngineClosed:
                raise
            except Exception as raised:
                error = raised
        message = None if error is None else f"{type(error).__name__}: {error}"
        return _Said(seed, audio, message, time.perf_counter() - start)

    def _check_words(self, text: str) -> None:
        if self._loaded.vocabulary is not None and (unknown := unknown_words(self._loaded, text)):
            raise ValueError(f"text: expected words that {self._loaded.name} knows, got {', '.join(unknown)}")

    def _report(self, said: _Said) -> str:
        report = acceleration_report(self._loaded.model)
        facts = {
            "took_s": round(said.took_s, 3),
            **self._approximations.arguments(),
            "threads": report.threads,
            "isa": report.isa,
            "device": str(self._loaded.model.device),
            "fell_back": [str(reason) for reason in report.fallbacks],
            "gpus": _given_to_actor("GPU"),
            "node": socket.gethostname(),
            "pid": os.getpid(),
        }
        return json.dumps(facts)


def _given_to_actor(resource: str) -> float:
    """Share of a resource ("CPU", "GPU") that Ray gave this process: 0 where it is no actor."""
    context = ray.get_runtime_context() if ray.is_initialized() else None
    if context is None or context.get_actor_id() is None:
        return 0.0
    return context.get_assigned_resources().get(resource, 0.0)
