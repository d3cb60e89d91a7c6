"""Whole generations on a GPU, stock and ours, and the time to the first sound."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Generator, Tensor

from bark_accel import AudioStreamer, acceleration_report, stream
from bark_accel.bench import models as checkpoints
from bark_accel.bench.launches import tokens_of_a_row
from bark_accel.bench.measure import Run, run_once, token_differences
from bark_accel.decoding import cuda_graphs as graphs
from bark_accel.ops.token_run import MOST_ROWS
from bark_accel.stages import fine_graphs
from bark_accel.streaming import sound
from bark_accel.streaming.streamer import POLICIES
from benchmarks.gpu.plan import Job, Plan
from benchmarks.gpu.rows import Rows, accelerated, build_model, synchronize
from benchmarks.gpu.steps import as_one_kernel

TEXT = "Hello, my dog is cute"
OURS: dict[str, dict[str, Any]] = {
    "bark_accel, graphs": {},
    "bark_accel, eager": {"cuda_graphs": False},
    "bark_accel, graphs, torch ops": {"backend": "torch"},
    "bark_accel, graphs, int8 weights": {"weights": "int8"},
}
# The first of them again, with one kernel for many tokens.
ONE_KERNEL = "bark_accel, one kernel a window"
SMOKE = ("bark_accel, eager", "bark_accel, graphs", "bark_accel, graphs, int8 weights")
# Guesses for a GPU, so that a row that does not fit is named rather than cut off.
STOCK_S, OURS_S = 12.0, 5.0


def measure_smoke(plan: Plan, rows: Rows, job: Job) -> None:
    """Three short generations, beside stock's tokens: what fails here fails everywhere."""
    model, stock = build_model(plan, job), list[Run]()
    case = case_of(job, 1)
    tokens = plan.smoke_semantic_tokens
    rows.add("smoke", {**case, "name": "stock"}, lambda: generate(plan, model, 1, 1, stock, tokens))
    for name in SMOKE:
        rows.add("smoke", {**case, "name": name}, lambda n=name: ours(plan, model, job, 1, n, stock, 1, tokens))


def measure_generations(plan: Plan, rows: Rows, job: Job) -> None:
    """Stock's rows first, so that nothing of ours can lose them; float32 rows say which tokens differ from stock's."""
    model = build_model(plan, job)
    stock: dict[int, list[Run]] = {size: [] for size in plan.batch_sizes}
    for size, runs in stock.items():

        def measure_stock(size: int = size, runs: list[Run] = runs) -> dict[str, Any]:
            return generate(plan, model, size, plan.stock_repeats, runs)

        rows.add("generate", {**case_of(job, size), "name": "stock"}, measure_stock, plan.stock_repeats * STOCK_S)
    for size, runs in stock.items():
        for name, options in OURS.items():
            repeats = plan.repeats if options.get("cuda_graphs", True) else 1

            def measure(size: int = size, runs: list[Run] = runs, name: str = name, repeats: int = repeats) -> Any:
                return ours(plan, model, job, size, name, runs, repeats)

            rows.add("generate", {**case_of(job, size), "name": name}, measure, OURS_S)
        if plan.on_gpu and size <= MOST_ROWS:
            first = partial(ours, plan, model, job, size, next(iter(OURS)), runs, plan.repeats)
            rows.add("generate", {**case_of(job, size), "name": ONE_KERNEL}, partial(one_kernel, first), OURS_S)


def one_kernel(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    with as_one_kernel():
        return measure()


def case_of(job: Job, batch_size: int) -> dict[str, Any]:
    return {"shape": job.shape, "dtype": job.dtype, "batch_size": batch_size}


def ours(
    plan: Plan, model: Any, job: Job, batch_size: int, name: str, stock: list[Run], repeats: int, tokens: int = 0
) -> dict[str, Any]:
    """One of `OURS`, with the ops it ran on, what capturing took, and where its tokens are not stock's."""
    runs: list[Run] = []
    with captures_timed(plan) as captures, accelerated(model, **OURS[name]) as fast:
        row = generate(plan, fast, batch_size, repeats, runs, tokens)
        report = acceleration_report(fast)
    row |= {"ops": {s.stage: s.ops for s in report.stages}, "captured_graphs": report.captured_graphs}
    row |= {
        "capture_s": captures,
        "not_captured": [*report.capture_faults, *report.given_up_steps],
        "fine_window": report.fine_window,
    }
    if stock and job.dtype == "float32" and "weights" not in OURS[name]:
        row["token_differences"] = token_differences(stock[0], runs[0])
    return row


@contextlib.contextmanager
def captures_timed(plan: Plan) -> Iterator[list[float]]:
    """Seconds of each graph that is captured in the block."""
    captures: list[float] = []
    made_by = {module: module.make_capturer for module in (graphs, fine_graphs)}

    class Timed:
        def __init__(self, capturer: Any):
            self._capturer = capturer

        def capture(self, step: Callable[[], None], generator: Generator | None) -> Callable[[], None]:
            synchronize(plan)
            began = time.perf_counter()
            replay = self._capturer.capture(step, generator)
            synchronize(plan)
            captures.append(time.perf_counter() - began)
            return replay

    def timed(make: Callable[[torch.device], Any]) -> Callable[[torch.device], Any]:
        def make_timed(device: torch.device) -> Any:
            capturer = make(device)
            return None if capturer is None else Timed(capturer)

        return make_timed

    with contextlib.ExitStack() as patched:
        for module, make in made_by.items():
            patched.enter_context(mock.patch.object(module, "make_capturer", timed(make)))
        yield captures


def generate(
    plan: Plan,
    model: Any,
    batch_size: int,
    repeats: int,
    runs: list[Run],
    tokens: int = 0,
    warm_up_tokens: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Latency by stage, peak memory, seconds of audio; appends the runs after a short warm-up to `runs`."""
    tokens = tokens or plan.semantic_tokens
    inputs, seconds, new = batch_of(plan, model, batch_size), [], list[Run]()
    warm_up = run_once(model, inputs, 0, semantic_max_new_tokens=warm_up_tokens or max(2, tokens // 8), **options)
    if plan.on_gpu:
        torch.cuda.reset_peak_memory_stats(plan.device)
    for _ in range(repeats):
        synchronize(plan)
        began = time.perf_counter()
        new.append(run_once(model, inputs, 0, semantic_max_new_tokens=tokens, **options))
        synchronize(plan)
        seconds.append(time.perf_counter() - began)
    runs.extend(new)
    median, audio_s = statistics.median(seconds), new[0].audio_s
    return {
        "median_s": median,
        "all_s": seconds,
        "stage_s": {stage: statistics.median(run.seconds[stage] for run in new) for stage in new[0].seconds},
        "warm_up_s": {"all": warm_up.total_s, **warm_up.seconds},
        "tokens_of_a_row": tokens_of_a_row(new[0], batch_size),
        "audio_s": audio_s * batch_size,
        "real_time_factor": median / audio_s,
        "audio_s_per_s": audio_s * batch_size / median,
        "utterances_per_s": batch_size / median,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(plan.device) if plan.on_gpu else None,
    }


def batch_of(plan: Plan, model: Any, rows: int) -> dict[str, Tensor]:
    inputs = checkpoints.fake_inputs(model, TEXT)
    return {k: v.repeat_interleave(rows, 0).to(plan.device) for k, v in inputs.items()}


def measure_first_sound(plan: Plan, rows: Rows, job: Job) -> None:
    """Seconds from the call to the first chunk, by policy, 5 seconds of speech at most.

    Low latency again with one kernel for many tokens, which leaves no multiprocessor to the sound beside it.
    """
    with accelerated(build_model(plan, job)) as fast:
        for policy in POLICIES:
            case = {"shape": job.shape, "dtype": job.dtype, "policy": policy}
            rows.add("first_sound", case, lambda p=policy: first_sound(plan, fast, p), OURS_S)
        if plan.on_gpu:
            policy = "low_latency"
            case = {"shape": job.shape, "dtype": job.dtype, "policy": policy, "name": ONE_KERNEL}
            rows.add("first_sound", case, partial(one_kernel, partial(first_sound, plan, fast, policy)), OURS_S)


def first_sound(plan: Plan, model: Any, policy: str) -> dict[str, Any]:
    """Seconds to the first chunk; to the last with sound decoded beside the next tokens, and in turn with them."""
    listened = [listen(plan, model, policy, chunks=1) for _ in range(plan.repeats + 1)]  # the first one warms up
    rounds = range(max(1, plan.repeats // 2))
    beside = [listen(plan, model, policy) for _ in rounds]
    with mock.patch.object(sound, "make_side_stream", lambda device: None):
        in_turn = [listen(plan, model, policy) for _ in rounds]
    return {
        "first_sound_s": statistics.median(listened[1:]),
        "all_s": listened[1:],
        "warm_up_s": listened[0],
        "last_sound_s": statistics.median(beside),
        "last_sound_in_turn_s": statistics.median(in_turn),
    }


def listen(plan: Plan, model: Any, policy: str, chunks: int | None = None) -> float:
    """Seconds from the call to so many chunks of a stream, or to all."""
    torch.manual_seed(0)
    began = time.perf_counter()
    heard = stream(
        model,
        streamer=AudioStreamer(model, policy=policy),
        **batch_of(plan, model, 1),
        semantic_max_new_tokens=min(plan.semantic_tokens, 250),
    )
    for _ in itertools.islice(heard, chunks):
        pass
    seconds = time.perf_counter() - began
    heard.close()
    return seconds
