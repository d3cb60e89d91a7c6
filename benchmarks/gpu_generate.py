"""Whole generations on a GPU, stock and ours, and the time to the first sound."""

from __future__ import annotations

import statistics
import time
from importlib.util import find_spec
from typing import Any

import torch
from gpu_results import Plan, Results
from torch import Tensor

from bark_accel import AudioStreamer, accelerate_bark, acceleration_report, restore_bark, stream
from bark_accel.bench import models as checkpoints
from bark_accel.bench.measure import Run, run_once, token_differences
from bark_accel.streaming.streamer import POLICIES

TEXT = "Hello, my dog is cute"
OURS: dict[str, dict[str, Any]] = {
    "bark_accel, graphs": {},
    "bark_accel, eager": {"cuda_graphs": False},
    "bark_accel, graphs, torch ops": {"backend": "torch"},
    "bark_accel, graphs, int8 weights": {"weights": "int8"},
}

# What the post compares beside these two: a model of its own each, in float16, a batch of one.
VARIANTS = ("stock, static", "stock, flash_attention_2", "bark_accel, flash_attn", "stock, offload")


def measure_first_sound(plan: Plan, results: Results, shape: str, model: Any) -> None:
    """Seconds from the call to the first chunk, by policy, 5 seconds of speech at most."""
    fast = accelerate_bark(model, strict=True)
    tokens = min(plan.semantic_tokens, 250)
    for policy in POLICIES:
        case = {"shape": shape, "dtype": str(model.dtype).removeprefix("torch."), "policy": policy}
        results.add("first_sound", case, lambda p=policy: first_sound(plan, fast, p, tokens), 10)
    restore_bark(fast)


def first_sound(plan: Plan, model: Any, policy: str, tokens: int) -> dict[str, Any]:
    times = []
    for _ in range(plan.repeats + 1):  # the first one warms up
        torch.manual_seed(0)
        began = time.perf_counter()
        chunks = stream(
            model,
            streamer=AudioStreamer(model, policy=policy),
            **batch_of(plan, model, 1),
            semantic_max_new_tokens=tokens,
        )
        next(chunks)
        first_s = time.perf_counter() - began
        chunks.close()
        times.append(first_s)
    return {"first_sound_s": statistics.median(times[1:]), "all_s": times[1:]}


def batch_of(plan: Plan, model: Any, rows: int) -> dict[str, Tensor]:
    inputs = checkpoints.fake_inputs(model, TEXT)
    return {k: v.repeat_interleave(rows, 0).to(plan.device) for k, v in inputs.items()}


def measure_generations(plan: Plan, results: Results, shape: str, model: Any, batch_size: int) -> None:
    """Stock and ours in the model's dtype; float32 rows say which tokens differ from stock's."""
    dtype = str(model.dtype).removeprefix("torch.")
    case = {"shape": shape, "dtype": dtype, "batch_size": batch_size}
    stock: list[Run] = []
    needs_s = stock_s(plan)
    results.add("generate", {**case, "name": "stock"}, lambda: generate(plan, model, batch_size, 1, stock), needs_s)
    for name, options in OURS.items():

        def measure(options: dict[str, Any] = options) -> dict[str, Any]:
            fast, runs = accelerate_bark(model, strict=True, **options), list[Run]()
            try:
                repeats = plan.repeats if options.get("cuda_graphs", True) else 1
                row = generate(plan, fast, batch_size, repeats, runs)
                report = acceleration_report(fast)
                ops = {s.stage: s.ops for s in report.stages}
                row |= {"ops": ops, "captured_graphs": report.captured_graphs}
            finally:
                restore_bark(fast)
            if stock and dtype == "float32" and "weights" not in options:
                row["token_differences"] = token_differences(stock[0], runs[0])
            return row

        results.add("generate", {**case, "name": name}, measure, needs_s / 3)


def stock_s(plan: Plan) -> float:
    """A guess of what a case with Transformers' own code takes."""
    return 15.0 * len(plan.shapes) if plan.on_gpu else 1.0


def generate(
    plan: Plan, model: Any, batch_size: int, repeats: int, runs: list[Run], tokens: int = 0, **options: Any
) -> dict[str, Any]:
    """Latency, peak memory, seconds of audio; appends the runs after a short warm-up to `runs`."""
    tokens = tokens or plan.semantic_tokens
    inputs, seconds = batch_of(plan, model, batch_size), []
    run_once(model, inputs, 0, semantic_max_new_tokens=max(2, tokens // 8), **options)
    if plan.on_gpu:
        torch.cuda.reset_peak_memory_stats(plan.device)
    for _ in range(repeats):
        plan.synchronize()
        began = time.perf_counter()
        run = run_once(model, inputs, 0, semantic_max_new_tokens=tokens, **options)
        plan.synchronize()
        seconds.append(time.perf_counter() - began)
        runs.append(run)
    median = statistics.median(seconds)
    audio_s = run.audio_s * batch_size
    return {
        "median_s": median,
        "all_s": seconds,
        "audio_s": audio_s,
        "real_time_factor": median / run.audio_s,
        "audio_s_per_s": audio_s / median,
        "utterances_per_s": batch_size / median,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(plan.device) if plan.on_gpu else None,
    }


def measure_docs(plan: Plan, results: Results, shape: str, model: Any) -> None:
    """The table of Transformers' own documentation: throughput by batch size, in float16."""
    tokens = plan.docs_semantic_tokens
    for batch_size in plan.docs_batch_sizes:
        case = {"shape": shape, "dtype": "float16", "batch_size": batch_size, "semantic_tokens": tokens}

        def stock(batch_size: int = batch_size) -> dict[str, Any]:
            return generate(plan, model, batch_size, 1, [], tokens)

        def ours(batch_size: int = batch_size) -> dict[str, Any]:
            fast = accelerate_bark(model, strict=True)
            try:
                return generate(plan, fast, batch_size, plan.repeats, [], tokens)
            finally:
                restore_bark(fast)

        results.add("docs", {**case, "name": "stock"}, stock, 2 * stock_s(plan))
        results.add("docs", {**case, "name": "bark_accel, graphs"}, ours, stock_s(plan))


def measure_variants(plan: Plan, results: Results, shape: str) -> None:
    """The static cache, which Transformers compiles on a GPU, may take any time."""
    for name in VARIANTS:
        case = {"shape": shape, "dtype": "float16", "batch_size": 1, "name": name}
        if name.endswith(("flash_attention_2", "flash_attn")) and find_spec("flash_attn") is None:
            results.leave_out("generate", case, "flash-attn is not installed")
        elif name.endswith("offload") and not plan.on_gpu:
            results.leave_out("generate", case, "there is no GPU to load on")
        else:
            results.add("generate", case, lambda n=name: variant(plan, shape, n), 4 * stock_s(plan))


def variant(plan: Plan, shape: str, name: str) -> dict[str, Any]:
    model, options = plan.build(shape).to(torch.float16), dict[str, Any]()
    if name == "stock, offload":
        model.enable_cpu_offload()
        return generate(plan, model, 1, 1, [])
    model.to(plan.device)
    if name == "stock, static":
        options["cache_implementation"] = "static"
    elif name == "stock, flash_attention_2":
        model.set_attn_implementation("flash_attention_2")
    else:
        accelerate_bark(model, strict=True, attention="flash_attn")
    return generate(plan, model, 1, 1, [], **options)
