"""Launches of a step and of a generation on a GPU, by torch's profiler, which slows what is measured after it."""

from __future__ import annotations

import re
from typing import Any

from torch.profiler import ProfilerActivity, profile

from bark_accel.bench.launches import device_events, kernels_per_token, stage_launches, tokens_of_a_row
from bark_accel.bench.measure import run_once
from bark_accel.hf.transformer import transformer_weights
from bark_accel.transformer.precision import convert
from benchmarks.gpu.generate import OURS, batch_of, case_of
from benchmarks.gpu.plan import Job, Plan
from benchmarks.gpu.rows import Rows, accelerated, build_model, synchronize
from benchmarks.gpu.steps import filled_cache, one_step

KERNELS_SHOWN = 20
COUNTED = ("bark_accel, graphs", "bark_accel, eager")


def measure_kernels(plan: Plan, rows: Rows, job: Job) -> None:
    model = build_model(plan, job)
    case = case_of(job, 1)
    rows.add("launches", {**case, "name": "stock"}, lambda: launches(plan, model))
    weights = convert(transformer_weights("semantic", model.semantic), "float16")
    for size in plan.batch_sizes:
        step_case = {"shape": job.shape, "weights": "float16", "batch_size": size}
        rows.add("kernels", step_case, lambda b=size: kernels(plan, model.semantic, weights, b))
    for name in COUNTED:

        def measure(name: str = name) -> dict[str, Any]:
            with accelerated(model, **OURS[name]) as fast:
                return launches(plan, fast)

        rows.add("launches", {**case, "name": name}, measure)


def launches(plan: Plan, model: Any) -> dict[str, Any]:
    """Kernels and copies of each stage of a short generation, prompts included (on a CPU: ops)."""
    inputs = {**batch_of(plan, model, 1), "semantic_max_new_tokens": plan.profiled_semantic_tokens}
    run_once(model, inputs, 0)  # graphs are captured here
    counts, run = stage_launches(model, inputs, 0, on_gpu=plan.on_gpu)
    steps = tokens_of_a_row(run)
    return {
        "stages": counts,
        "tokens_of_a_row": steps,
        "kernels_per_token": kernels_per_token(counts, steps),
    }


def kernels(plan: Plan, module: Any, weights: Any, batch_size: int) -> dict[str, Any]:
    """Microseconds that each kernel of an eager step runs for (on a CPU: each op)."""
    with filled_cache(plan, module, weights, batch_size) as cache:
        once, _, _ = one_step(plan, module, weights, cache, "auto")
        for _ in range(3):
            once()
        synchronize(plan)
        with profile(activities=[activity(plan)]) as seen:
            for _ in range(plan.repeats):
                once()
            synchronize(plan)
    rows = []
    for name, count, microseconds in device_events(seen, plan.on_gpu):
        row = {"kernel": short_name(name), "calls": count / plan.repeats, "us_per_step": microseconds / plan.repeats}
        rows.append(row)
    if not rows:
        raise RuntimeError("the profiler saw no kernel")
    rows.sort(key=lambda row: -row["us_per_step"])
    return {
        "us_per_step": sum(row["us_per_step"] for row in rows),
        "launches_per_step": sum(row["calls"] for row in rows),
        "kernels": rows[:KERNELS_SHOWN],
    }


def activity(plan: Plan) -> ProfilerActivity:
    return ProfilerActivity.CUDA if plan.on_gpu else ProfilerActivity.CPU


def short_name(kernel: str) -> str:
    """Without return type, namespaces and arguments; of ours, the body that runs."""
    name = kernel.replace("(anonymous namespace)::", "").removeprefix("void ")
    ours = re.match(r"bark_accel::cuda::entry<(.*)>\(", name)
    name = ours[1] if ours else name.partition("(")[0]
    return re.sub(r"\b\w+::", "", name)[:80]
