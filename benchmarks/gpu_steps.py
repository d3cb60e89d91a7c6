"""Decode steps on a GPU: milliseconds beside what the memory allows, and what each kernel of a step takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from gpu_results import Plan, Results, timed_ms
from torch.profiler import ProfilerActivity, profile

from bark_accel.decoding import cuda_graphs as graphs
from bark_accel.decoding.sampling import Sampler, SamplingConfig, TokenRange
from bark_accel.hf import extract
from bark_accel.ops._library import load
from bark_accel.ops.backend import get_ops
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCache, KVCachePool
from bark_accel.transformer.precision import convert

BACKENDS = {"native": "auto", "torch": "torch"}
KERNELS_SHOWN = 20


def read_bandwidth(plan: Plan) -> float:
    """Bytes a second of a large reduction, the ceiling that steps are compared with."""
    data = torch.ones(plan.probe_bytes // 4, dtype=torch.float32, device=plan.device)
    return data.nbytes / timed_ms(plan, data.sum, 10) * 1e3


def measure_steps(plan: Plan, results: Results, shape: str, module: Any) -> None:
    """One step of the semantic model: scores and the drawn token, ids and position moved on by the device."""
    exact = extract.transformer_weights("semantic", module)
    for precision in ("same", "float16", "bfloat16", "int8"):
        with results.noting(f"decode_step: {shape}, {precision}"):
            weights = convert(exact, precision)
            for batch_size in plan.batch_sizes:
                case = {"shape": shape, "weights": precision, "batch_size": batch_size}
                results.add("decode_step", case, lambda w=weights, b=batch_size: step(plan, results, module, w, b), 5)
                if precision == "float16":
                    results.add("kernels", case, lambda w=weights, b=batch_size: kernels(plan, module, w, b), 5)


@contextmanager
def filled_cache(plan: Plan, module: Any, weights: Any, batch_size: int) -> Iterator[KVCache]:
    with KVCachePool().borrow(extract.transformer_spec(module), batch_size, weights.cache_dtype, plan.device) as cache:
        cache.keys.normal_()
        cache.values.normal_()
        yield cache


def one_step(
    plan: Plan, module: Any, weights: Any, cache: KVCache, backend: str
) -> tuple[Callable[[], None], torch.Generator, CausalModel]:
    """A step after `context_tokens` tokens, the generator it draws from, and the model."""
    spec = extract.transformer_spec(module)
    allowed = TokenRange(0, min(10_000, spec.output_vocab_size))
    model = CausalModel(weights, spec, get_ops(backend, plan.device))
    sampler = Sampler.of(model, SamplingConfig(True, 1, temperature=0.7, top_k=50))
    generator = torch.Generator(plan.device)
    ids = torch.zeros(cache.keys.shape[1], 1, dtype=torch.int64, device=plan.device)

    def once() -> None:
        cache.length.fill_(plan.context_tokens)
        logits = model.step_logits(ids, cache, allowed.head_rows)[:, -1]
        ids.copy_(sampler.draw(logits, allowed, generator)[:, None])

    return once, generator, model


def step(plan: Plan, results: Results, module: Any, weights: Any, batch_size: int) -> dict[str, Any]:
    row: dict[str, Any] = {}
    with filled_cache(plan, module, weights, batch_size) as cache:
        for name, backend in BACKENDS.items():
            once, generator, model = one_step(plan, module, weights, cache, backend)
            row[f"{name}_eager_ms"] = timed_ms(plan, once, plan.repeats)
            recorder = graphs.make_recorder(plan.device)
            if recorder is None:
                continue
            row[f"{name}_graph_ms"] = timed_ms(plan, recorder.record(once, generator), plan.repeats, 10)
            if name == "native" and plan.launches_early:
                with launched_early():
                    replay = recorder.record(once, generator)
                    row["native_graph_dependent_launch_ms"] = timed_ms(plan, replay, plan.repeats, 10)
        row["bytes_read"] = bytes_read(plan, model, cache)
    bandwidth = results.content["read_bandwidth_bytes_per_s"]
    if bandwidth is not None:
        for name in [key for key in row if key.endswith("_ms")]:
            row[f"{name.removesuffix('_ms')}_of_bandwidth"] = row["bytes_read"] / row[name] * 1e3 / bandwidth
    return row


@contextmanager
def launched_early() -> Iterator[None]:
    """Programmatic dependent launch, for what is recorded inside."""
    load().set_dependent_launch(True)
    try:
        yield
    finally:
        load().set_dependent_launch(False)


def bytes_read(plan: Plan, model: CausalModel, cache: KVCache) -> int:
    """Of a step: matrices with their scales, and the keys and values of the context; tables are gathered from."""
    tables = (model.weights.token_tables[0], model.weights.positions)
    matrices = sum(t.nbytes for t in model.matrices if all(t is not table for table in tables))
    valid = cache.keys[:, :, :, : plan.context_tokens]
    return matrices + 2 * valid.numel() * valid.element_size()


def kernels(plan: Plan, module: Any, weights: Any, batch_size: int) -> dict[str, Any]:
    """By the profiler: microseconds that each kernel of an eager step runs for (on a CPU: each op)."""
    with filled_cache(plan, module, weights, batch_size) as cache:
        once, _, _ = one_step(plan, module, weights, cache, "auto")
        for _ in range(3):
            once()
        plan.synchronize()
        with profile(activities=[ProfilerActivity.CUDA if plan.on_gpu else ProfilerActivity.CPU]) as seen:
            for _ in range(plan.repeats):
                once()
            plan.synchronize()
    rows = []
    for event in seen.key_averages():
        microseconds = event.self_device_time_total if plan.on_gpu else event.self_cpu_time_total
        if microseconds > 0:
            calls, each = event.count / plan.repeats, microseconds / plan.repeats
            rows.append({"kernel": short_name(event.key), "calls": calls, "us_per_step": each})
    if not rows:
        raise RuntimeError("the profiler saw no kernel")
    rows.sort(key=lambda row: -row["us_per_step"])
    return {"us_per_step": sum(row["us_per_step"] for row in rows), "kernels": rows[:KERNELS_SHOWN]}


def short_name(kernel: str) -> str:
    """Without return type, namespaces and arguments; of ours, the body that runs."""
    name = kernel.replace("(anonymous namespace)::", "").removeprefix("void ")
    ours = re.match(r"bark_accel::cuda::entry<(.*)>\(", name)
    name = ours[1] if ours else name.partition("(")[0]
    return re.sub(r"\b\w+::", "", name)[:80]
