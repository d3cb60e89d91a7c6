"""Decode steps on a GPU: milliseconds beside what the memory allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bark_accel.decoding.graph_capture import make_capturer
from bark_accel.decoding.sampling import Sampler, SamplingConfig, TokenRange
from bark_accel.hf.transformer import transformer_spec, transformer_weights
from bark_accel.ops._library import load
from bark_accel.ops.backend import get_ops
from bark_accel.ops.graph_draw import NextStep
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCache, KVCachePool
from bark_accel.transformer.precision import convert
from benchmarks.gpu.plan import Job, Plan
from benchmarks.gpu.rows import Rows, build_model, read_bandwidth, synchronize, timed_ms

PERSISTENT_ROWS = 4  # at most, in one kernel a step
RUN_TOKENS = 32  # of a launch that draws many
BACKENDS = {"native": "auto", "torch": "torch"}
PRECISIONS = ("same", "float16", "bfloat16", "int8")


def measure_steps(plan: Plan, rows: Rows, job: Job) -> None:
    """One step of the semantic model: scores and the drawn token, ids and position moved on by the device."""
    module = build_model(plan, job).semantic
    exact = transformer_weights("semantic", module)
    bandwidth = read_bandwidth(plan)
    for precision in PRECISIONS:
        weights = convert(exact, precision)
        for size in plan.batch_sizes:
            case = {"shape": job.shape, "weights": precision, "batch_size": size}
            rows.add("decode_step", case, lambda w=weights, b=size: step(plan, module, w, b, bandwidth))


@contextmanager
def filled_cache(plan: Plan, module: Any, weights: Any, batch_size: int) -> Iterator[KVCache]:
    spec, device = transformer_spec(module), torch.device(plan.device)
    with KVCachePool().borrow(spec, batch_size, weights.cache_dtype, device) as cache:
        cache.keys.normal_()
        cache.values.normal_()
        yield cache


def one_step(
    plan: Plan, module: Any, weights: Any, cache: KVCache, backend: str
) -> tuple[Callable[[], None], torch.Generator, CausalModel]:
    """A step after `context_tokens` tokens, the generator it draws from, and the model."""
    spec = transformer_spec(module)
    allowed = TokenRange(0, min(10_000, spec.output_vocab_size))
    model = CausalModel(weights, spec, get_ops(backend, torch.device(plan.device)))
    sampler = Sampler.of(model, SamplingConfig(True, 1, temperature=0.7, top_k=50))
    generator = torch.Generator(plan.device)
    ids = torch.zeros(cache.keys.shape[1], 1, dtype=torch.int64, device=plan.device)

    def once() -> None:
        cache.length.fill_(plan.context_tokens)
        logits = model.step_logits(ids, cache, allowed.head_rows)[:, -1]
        ids.copy_(sampler.draw(logits, allowed, generator)[:, None])

    return once, generator, model


def many_tokens(plan: Plan, model: CausalModel, cache: KVCache) -> Callable[[], None]:
    """`RUN_TOKENS` steps and draws after `context_tokens` tokens, in one kernel."""
    rows, device = cache.keys.shape[1], cache.keys.device
    ids, drawn, count, limit, philox = (
        torch.zeros(*shape, dtype=torch.int64, device=device)
        for shape in ((rows, 1), (RUN_TOKENS, rows), (rows,), (1,), (2,))
    )
    limit.fill_(RUN_TOKENS)
    sampler = Sampler.of(model, SamplingConfig(True, 1, temperature=0.7, top_k=50))
    allowed = [TokenRange(0, min(10_000, model.spec.output_vocab_size))]
    next_step = NextStep(ids, drawn, count, cache.length)

    def once() -> None:
        cache.length.fill_(plan.context_tokens)
        count.zero_()
        sampler.draw_tokens(model, allowed, cache, philox, next_step, limit)

    return once


def step(plan: Plan, module: Any, weights: Any, batch_size: int, bandwidth: float) -> dict[str, Any]:
    row: dict[str, Any] = {}
    with filled_cache(plan, module, weights, batch_size) as cache:
        for name, backend in BACKENDS.items():
            once, generator, model = one_step(plan, module, weights, cache, backend)
            row[f"{name}_eager_ms"] = timed_ms(plan, once, plan.repeats)
            capturer = make_capturer(cache.keys.device)
            if capturer is None:
                continue
            synchronize(plan)
            began = time.perf_counter()
            replay = capturer.capture(once, generator)
            synchronize(plan)
            row[f"{name}_capture_s"] = time.perf_counter() - began
            row[f"{name}_graph_ms"] = timed_ms(plan, replay, plan.repeats, 10)
            if name == "native" and launches_early(plan):
                with launched_in_turn():
                    replay = capturer.capture(once, generator)
                    row["native_graph_launched_in_turn_ms"] = timed_ms(plan, replay, plan.repeats, 10)
            if name == "native" and batch_size <= PERSISTENT_ROWS and plan.on_gpu:
                with as_one_kernel():
                    replay = capturer.capture(once, generator)
                    row["native_graph_persistent_ms"] = timed_ms(plan, replay, plan.repeats, 10)
                    if model.draws_tokens(cache):
                        replay = capturer.capture(many_tokens(plan, model, cache), None)
                        row["native_many_tokens_ms"] = timed_ms(plan, replay, plan.repeats) / RUN_TOKENS
        row["bytes_read"] = bytes_read(plan, model, cache)
    for name in [key for key in row if key.endswith("_ms")]:
        row[f"{name.removesuffix('_ms')}_of_bandwidth"] = row["bytes_read"] / row[name] * 1e3 / bandwidth
    return row


def launches_early(plan: Plan) -> bool:
    """Tell whether the device has programmatic dependent launch."""
    return plan.on_gpu and torch.cuda.get_device_capability(plan.device) >= (9, 0)


@contextmanager
def launched_in_turn() -> Iterator[None]:
    """No programmatic dependent launch, for what is captured inside."""
    load().set_dependent_launch(False)
    try:
        yield
    finally:
        load().set_dependent_launch(True)


@contextmanager
def as_one_kernel() -> Iterator[None]:
    """One kernel a step, for what is captured inside."""
    before = load().persistent_step
    load().set_persistent_step(True)
    try:
        yield
    finally:
        load().set_persistent_step(before)


def bytes_read(plan: Plan, model: CausalModel, cache: KVCache) -> int:
    """Count the bytes that a step reads: matrices with their scales, and the keys and values of the context.

    Tables are left out: only a few of their rows are gathered.
    """
    tables = (model.weights.token_tables[0], model.weights.positions)
    matrices = sum(t.nbytes for t in model.matrices if all(t is not table for table in tables))
    valid = cache.keys[:, :, :, : plan.context_tokens]
    return matrices + 2 * valid.numel() * valid.element_size()
