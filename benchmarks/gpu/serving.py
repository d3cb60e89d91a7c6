"""Serving on a GPU: a warm-up before the first request, and requests that share an engine's steps."""

from __future__ import annotations

import time
from typing import Any

import torch

from bark_accel import acceleration_report, warmup
from bark_accel.bench.launches import tokens_of_a_row
from bark_accel.bench.measure import run_once
from bark_accel.hf.configs import GenerationConfigs, sample_rate
from benchmarks.generation.load import Asked, closed
from benchmarks.gpu.generate import OURS_S, batch_of, captures_timed
from benchmarks.gpu.plan import Job, Plan
from benchmarks.gpu.rows import Rows, accelerated, build_model, synchronize


def measure_serving(plan: Plan, rows: Rows, job: Job) -> None:
    """The warm-up first, for it is of a model that nothing was done with; then engines of more and more rows."""
    with accelerated(build_model(plan, job)) as fast:
        case = {"shape": job.shape, "dtype": job.dtype}
        rows.add("warmup", case, lambda: warmed_up(plan, fast), 2 * OURS_S)
        for size in plan.engine_rows:
            rows.add("engine", {**case, "rows": size}, lambda n=size: engine(plan, fast, n), OURS_S)


def warmed_up(plan: Plan, model: Any) -> dict[str, Any]:
    """Seconds of `warmup`, of the first request after it and of the second, which finds everything there."""
    inputs, seconds, captured = batch_of(plan, model, 1), [], []

    def request() -> Any:
        return run_once(model, inputs, 0, semantic_max_new_tokens=plan.semantic_tokens)

    for call in (lambda: warmup(model, **inputs), request, request):
        with captures_timed(plan) as captures:
            synchronize(plan)
            began = time.perf_counter()
            done = call()
            synchronize(plan)
            seconds.append(time.perf_counter() - began)
        captured.append(len(captures))
    return {
        "warmup_s": seconds[0],
        "first_request_s": seconds[1],
        "second_request_s": seconds[2],
        "captures": captured,
        "tokens_of_a_row": tokens_of_a_row(done, 1),
        "decode_step": acceleration_report(model).decode_step,
    }


def engine(plan: Plan, model: Any, size: int) -> dict[str, Any]:
    """Speech a second of twice as many requests as the engine has rows, all there at the start; one round warms up.

    Requests differ in their number of tokens, so that rows end and are filled again.
    """
    tokens = plan.engine_semantic_tokens
    lengths = [tokens - i % 4 * tokens // 8 for i in range(2 * size)]
    inputs, rate_hz = batch_of(plan, model, 1), GenerationConfigs.of(model).semantic.semantic_rate_hz
    asked = [
        Asked({**inputs, "semantic_max_new_tokens": n, "semantic_min_new_tokens": n}, seed, n / rate_hz)
        for seed, n in enumerate(lengths)
    ]
    closed(model, asked, size)
    if plan.on_gpu:
        torch.cuda.reset_peak_memory_stats(plan.device)
    waveforms, seconds = closed(model, asked, size)
    audio_s = sum(map(len, waveforms)) / sample_rate(model)
    return {"all_s": seconds, "audio_s": audio_s, "audio_s_per_s": audio_s / seconds}
