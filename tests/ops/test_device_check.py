"""The comparison of a device's ops with plain torch: right ops pass, every planted fault is found."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bark_accel.ops import device_cases, device_check
from bark_accel.ops import native as ops
from bark_accel.ops import reference as torch_ops
from bark_accel.ops.interface import Ops, StepCache, StepWeights

CPU = torch.device("cpu")
SAMPLE_NAMES = ("first_id", "allowed_begin", "allowed_end", "eos_id", "min_eos_p", "temperature", "top_k", "top_p")


def candidate(**planted: Callable[..., Tensor]) -> Any:
    return SimpleNamespace(**{**vars(ops), **planted})


def with_options(op: str, **changed: Any) -> Callable[..., Tensor]:
    """A sampler that does not do what some of its options ask for."""

    def sampler(logits: Tensor, source: Any, *options: Any) -> Tensor:
        skip = 1 if op == "fused_multinomial" else 0
        rules = dict(zip(SAMPLE_NAMES, options[skip:], strict=False))
        got = {**rules, **{name: value(rules) if callable(value) else value for name, value in changed.items()}}
        return getattr(ops, op)(logits, source, *options[:skip], *got.values(), options[-1])

    return sampler


def with_argument(op: str, index: int, change: Callable[[Any], Any]) -> Callable[..., Tensor]:
    def changed(*arguments: Any) -> Tensor:
        return getattr(ops, op)(*arguments[:index], change(arguments[index]), *arguments[index + 1 :])

    return changed


def with_weight(index: int, change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """A decode step that takes one of its weights for another."""

    def changed(weights: list[Tensor | None]) -> list[Tensor | None]:
        weight = weights[index]
        return weights if weight is None else [*weights[:index], change(weight), *weights[index + 1 :]]

    return with_argument("decode_step", 1, lambda step: step._replace(layers=changed(step.layers)))


def with_step(name: str, change: Callable[[Any], Any]) -> Callable[..., Tensor]:
    """A decode step that takes what it reads under one name for something else."""
    return with_argument("decode_step", 1, lambda step: step._replace(**{name: change(getattr(step, name))}))


def after(op: str, change: Callable[..., Any]) -> Callable[..., Tensor]:
    def changed(*arguments: Any) -> Tensor:
        result = getattr(ops, op)(*arguments)
        return result if (other := change(result, *arguments)) is None else other

    return changed


def one_value_off(result: Tensor, *arguments: Any) -> Tensor:
    changed = result.flatten().clone()
    changed[-1] += 1 if changed.dtype == torch.int64 else 0.1 * float(result.abs().max())
    return changed.view(result.shape)


def spoil_cache(result: Tensor, query: Tensor, key: Tensor, value: Tensor, keys: Tensor, *rest: Any) -> None:
    keys[..., -1, :].fill_(0)


def only_for(dtype: torch.dtype, index: int, change: Callable[..., Any]) -> Callable[..., Any]:
    """The same fault, with one dtype of an argument."""
    return lambda result, *arguments: change(result, *arguments) if _dtype(arguments[index]) == dtype else None


def _dtype(argument: Any) -> torch.dtype:
    return argument[0].dtype if isinstance(argument, list) else argument.dtype


def only_with(name: str, dtype: torch.dtype) -> Callable[..., Tensor]:
    """A decode step with one value off where what it reads under a name has one dtype."""

    def spoil(result: Tensor, ids: Tensor, step: StepWeights, cache: StepCache) -> Tensor | None:
        return one_value_off(result) if getattr(step, name).dtype == dtype else None

    return after("decode_step", spoil)


def repeat_default_noise(logits: Tensor, generator: Any, *options: Any) -> Tensor:
    """The right ids from a generator that stands where it stood."""
    state = generator.get_state()
    ids = ops.fused_multinomial(logits, generator, *options)
    generator.set_state(state)
    return ids


def never_refuses(name: str) -> Callable[..., Tensor]:
    def accepting(*arguments: Any) -> Tensor:
        try:
            return getattr(ops, name)(*arguments)
        except ValueError:
            return torch.zeros(1)

    return accepting


SAMPLER_FAULTS: dict[str, dict[str, Any]] = {
    "no top-k": {"top_k": 0},
    "top-k of one more": {"top_k": lambda r: r["top_k"] + 1 if 0 < r["top_k"] < 10 else r["top_k"]},
    "no top-p": {"top_p": 1.0},
    "no temperature": {"temperature": 1.0},
    "no early end": {"min_eos_p": 0.0},
    "no end": {"eos_id": -1},
    "a longer range": {"allowed_end": lambda r: r["allowed_end"] + (r["eos_id"] < r["allowed_end"] < 600)},
    "a range from the first id on": {"allowed_begin": lambda r: r["first_id"]},
}
FAULTS: dict[str, tuple[str, Callable[..., Tensor]]] = {
    **{f"{op}: {name}": (op, with_options(op, **changed)) for op in ("fused_sample", "fused_multinomial")
       for name, changed in SAMPLER_FAULTS.items()},
    **{f"{op}: one value off": (op, after(op, one_value_off)) for op in (
        "fused_sample", "fused_multinomial", "codebook_embedding_sum", "static_cache_attention", "decode_step")},
    **{f"{op}: {dtype} alone": (op, after(op, only_for(dtype, index, one_value_off)))
       for op, index in (("fused_sample", 0), ("codebook_embedding_sum", 1), ("static_cache_attention", 0))
       for dtype in device_cases.FLOATS},
    **{f"decode_step: {dtype} matrices alone": ("decode_step", only_with("head", dtype))
       for dtype in (*device_cases.FLOATS, torch.int8)},
    **{f"{op}: nothing is refused": (op, never_refuses(op)) for op in (
        "fused_sample", "codebook_embedding_sum", "decode_step")},
    "fused_multinomial: the generator stays": ("fused_multinomial", repeat_default_noise),
    "codebook_embedding_sum: a table left out": (
        "codebook_embedding_sum", with_argument("codebook_embedding_sum", 1, lambda tables: tables[:-1])),
    "codebook_embedding_sum: no positions": (
        "codebook_embedding_sum", with_argument("codebook_embedding_sum", 2, torch.zeros_like)),
    "codebook_embedding_sum: int32 codes read badly": ("codebook_embedding_sum", after(
        "codebook_embedding_sum", only_for(torch.int32, 0, one_value_off))),
    "static_cache_attention: the cache changed": (
        "static_cache_attention", after("static_cache_attention", spoil_cache)),
    "static_cache_attention: keys for values": (
        "static_cache_attention", lambda q, k, v, *rest: ops.static_cache_attention(q, k, k, *rest)),
    "decode_step: scales of the query": ("decode_step", with_weight(2, lambda weight: weight.roll(1, 0))),
    "decode_step: a bias left out": ("decode_step", with_weight(3, torch.zeros_like)),
    "decode_step: an int8 scale for its neighbour": ("decode_step", with_weight(4, lambda scales: scales.roll(1, 1))),
    "decode_step: no gain in the second layer": ("decode_step", with_weight(16, torch.ones_like)),
    "decode_step: a shift left out": ("decode_step", with_weight(9, torch.zeros_like)),
    "decode_step: another eps": (
        "decode_step", with_step("eps", lambda eps: [*eps[:3], eps[2], *eps[4:]])),
    "decode_step: the first id for all": (
        "decode_step", with_argument("decode_step", 0, lambda ids: ids[:1, :1].expand_as(ids))),
    "decode_step: positions from 0": ("decode_step", with_step("positions", lambda p: p.roll(1, 0))),
    "decode_step: tables of 16 bits read badly": (
        "decode_step", only_with("token_table", torch.float16)),
}  # fmt: skip


def test_the_compiled_ops_of_the_cpu_pass(isa: str) -> None:
    assert device_check.first_difference(ops, torch_ops, CPU) is None


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str) -> None:
    op, planted = FAULTS[name]
    found = device_check.first_difference(candidate(**{op: planted}), torch_ops, CPU)
    assert found is not None and found.startswith(f"{op} (")


@pytest.mark.parametrize("op", sorted({op for op, _ in FAULTS.values()}))
def test_an_op_that_fails_is_found(op: str) -> None:
    def failing(*arguments: Any) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be")

    found = device_check.first_difference(candidate(**{op: failing}), torch_ops, CPU)
    assert found is not None and found.startswith(f"{op} (")
    assert found.endswith("): raised RuntimeError: CUDA error: an illegal memory access was encountered")


def test_the_message_names_call_and_distance() -> None:
    planted = after("decode_step", one_value_off)
    found = device_check.first_difference(candidate(decode_step=planted), torch_ops, CPU)
    assert found is not None
    pattern = r"decode_step \(float32 weights, float32 tables, 1 x 1 tokens of width 128\): off by up to .* expected"
    assert re.match(pattern, found)


def test_memory_that_is_short_says_nothing_about_the_ops() -> None:
    def failing(*arguments: Any) -> Tensor:
        raise torch.cuda.OutOfMemoryError("out of memory")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        device_check.first_difference(candidate(decode_step=failing), torch_ops, CPU)


def test_every_op_that_has_kernels_is_compared() -> None:
    from bark_accel.ops import tensor_cores
    from bark_accel.ops.cuda import OPS as cuda_ops

    # pack_linear and packed_linear are a CPU's; draw_next is compared with torch's own draws
    # (graph_draw.follows_torch), decode_tokens with steps at first use; tensor_cores is torch.
    left = {"draw_next", "decode_tokens", "pack_linear", "packed_linear"}
    names = {field.name for field in fields(Ops)} - left
    torchs = {name for name in names if getattr(cuda_ops, name) is getattr(tensor_cores, name, None)}
    own = {name for name in names - torchs if getattr(cuda_ops, name) is not getattr(torch_ops, name)}
    assert {case.op for case in device_cases.cases()} == own


def test_no_case_hangs_on_a_rounding() -> None:
    """Numbers that differ by more than any kernel's rounding give the same tokens. (16-bit scores have ties.)"""
    generator = torch.Generator().manual_seed(1)

    def blurred(values: Tensor) -> Tensor:
        return values * (1 + 1e-5 * torch.randn(values.shape, generator=generator))

    def nearly(logits: Tensor, noise: Tensor | None, *rules: Any) -> Tensor:
        scores = blurred(logits) if logits.dtype == torch.float32 else logits
        return torch_ops.fused_sample(scores, None if noise is None else blurred(noise), *rules)

    for _ in range(10):
        assert device_check.first_difference(candidate(fused_sample=nearly), torch_ops, CPU) is None


def test_it_leaves_no_trace_and_minds_no_default() -> None:
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.use_deterministic_algorithms(True)
    try:
        with torch.autocast("cpu"), torch.inference_mode():
            assert device_check.first_difference(ops, torch_ops, CPU) is None
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> dict[torch.device, str | None]:
    known: dict[torch.device, str | None] = {}
    monkeypatch.setattr(device_check, "_faults", known)
    return known


def test_threads_that_come_together_compare_once(
    monkeypatch: pytest.MonkeyPatch, nothing_known: dict, caplog: pytest.LogCaptureFixture
) -> None:
    calls, barrier, results = [], threading.Barrier(4), []

    def slow(*arguments: Any) -> str:
        calls.append(arguments)
        threading.Event().wait(0.05)
        return "decode_step (one row): wrong"

    def work() -> None:
        barrier.wait()
        results.append(device_check.fault(ops, torch_ops, CPU))

    monkeypatch.setattr(device_check, "first_difference", slow)
    threads = [threading.Thread(target=work) for _ in range(4)]
    with caplog.at_level(logging.WARNING, "bark_accel"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(calls) == 1 and results == ["decode_step (one row): wrong"] * 4
    assert [r.getMessage() for r in caplog.records] == [
        "bark_accel runs plain torch ops on cpu, its compiled ones are wrong there: decode_step (one row): wrong"
    ]


def test_a_first_use_during_a_capture_is_refused(monkeypatch: pytest.MonkeyPatch, nothing_known: dict) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    with pytest.raises(RuntimeError, match="first use on cuda:1 before a CUDA graph is captured"):
        device_check.fault(ops, torch_ops, torch.device("cuda"))
    nothing_known[torch.device("cuda", 1)] = None
    assert device_check.fault(ops, torch_ops, torch.device("cuda")) is None
