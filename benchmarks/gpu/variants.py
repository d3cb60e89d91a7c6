"""Generations with other settings: stock's compiled static cache, Transformers' documented table, the rest."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.gpu.generate import OURS_S, STOCK_S, case_of, generate
from benchmarks.gpu.plan import Job, Plan
from benchmarks.gpu.rows import Rows, accelerated, build_model

VARIANTS = ("stock, flash_attention_2", "bark_accel, flash_attn", "bark_accel, offload", "stock, offload")


def measure_static(plan: Plan, rows: Rows, job: Job) -> None:
    """Stock with its static cache, which Transformers compiles on a GPU: the baseline that matters."""
    model = build_model(plan, job)
    rows.add("generate", {**case_of(job, 1), "name": "stock, static"}, lambda: static(plan, model))


def static(plan: Plan, model: Any) -> dict[str, Any]:
    """The warm-up is a whole run: another length would be compiled again. A graph is one that torch compiled.

    Without any, on a GPU, the row is not that of the compiled baseline, which counts as a failure.
    """
    tokens, repeats = plan.semantic_tokens, max(plan.stock_repeats, min(2, plan.repeats))
    row = generate(plan, model, 1, repeats, [], tokens, tokens, cache_implementation="static")
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    missing = ["Transformers compiled no step of its static cache"] if plan.on_gpu and graphs == 0 else []
    return {**row, "compiled_graphs": graphs, "not_captured": missing}


def measure_docs(plan: Plan, rows: Rows, job: Job) -> None:
    """The table of Transformers' own documentation: throughput by batch size, stock's rows first."""
    model, tokens = build_model(plan, job), plan.docs_semantic_tokens
    cases = [{**case_of(job, size), "semantic_tokens": tokens} for size in plan.docs_batch_sizes]

    def stock(size: int) -> dict[str, Any]:
        return generate(plan, model, size, plan.stock_repeats, [], tokens)

    def ours(size: int) -> dict[str, Any]:
        with accelerated(model) as fast:
            return generate(plan, fast, size, plan.repeats, [], tokens)

    for case in cases:
        rows.add("docs", {**case, "name": "stock"}, lambda s=case["batch_size"]: stock(s), plan.stock_repeats * STOCK_S)
    for case in cases:
        rows.add("docs", {**case, "name": "bark_accel, graphs"}, lambda s=case["batch_size"]: ours(s), OURS_S)


def measure_variants(plan: Plan, rows: Rows, job: Job) -> None:
    """Measure the post's variants beside stock and ours; offloading last, for it leaves its hooks on the model."""
    model = build_model(plan, job)
    for name in VARIANTS:
        case = {**case_of(job, 1), "name": name}
        if name.endswith(("flash_attention_2", "flash_attn")) and find_spec("flash_attn") is None:
            rows.leave_out("generate", case, "flash-attn is not installed")
        elif name.endswith("offload") and find_spec("accelerate") is None:
            rows.leave_out("generate", case, "accelerate is not installed")
        elif name == "stock, offload" and not plan.on_gpu:
            rows.leave_out("generate", case, "there is no GPU to load on")
        else:
            rows.add("generate", case, lambda n=name: variant(plan, model, n), STOCK_S)


def variant(plan: Plan, model: Any, name: str) -> dict[str, Any]:
    if name == "bark_accel, flash_attn":
        with accelerated(model, attention="flash_attn") as fast:
            return generate(plan, fast, 1, 1, [])
    if name == "bark_accel, offload":
        offload(plan, model)
        with accelerated(model) as fast:
            return generate(plan, fast, 1, 1, [])
    if name == "stock, offload":
        offload(plan, model)
        return generate(plan, model, 1, 1, [])
    before = model.config._attn_implementation
    model.set_attn_implementation("flash_attention_2")
    try:
        return generate(plan, model, 1, 1, [])
    finally:
        model.set_attn_implementation(before)


def offload(plan: Plan, model: Any) -> None:
    """Have the sub-models take turns on the device; without a GPU, bring their weights from elsewhere on the CPU."""
    from accelerate import cpu_offload

    if hasattr(model.semantic, "_hf_hook"):
        return
    if plan.on_gpu:
        model.enable_cpu_offload()
        return
    for part in (model.semantic, model.coarse_acoustics, model.fine_acoustics, model.codec_model):
        cpu_offload(part, torch.device(plan.device))
