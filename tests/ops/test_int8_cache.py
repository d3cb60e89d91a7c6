"""decode_step over caches of int8 entries: against fp64 on what the entries mean, and what a step writes into them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.decode_steps import layer_norm, product, results
from support.op_calls import call
from torch import Tensor

from bark_accel.ops import native as ops
from bark_accel.ops import reference as torch_ops
from bark_accel.ops.int8_entries import to_entries, to_vectors

from .conftest import decode_inputs

WEIGHTS = [torch.float32, torch.float16, torch.int8]


def int8_inputs(*shape: Any, **options: Any) -> tuple[Any, ...]:
    return decode_inputs(*shape, cache=torch.int8, **options)


def expected_of(inputs: tuple[Any, ...], caches: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """fp64: logits of a step that attends to `caches` as they are after it, and the keys and values it should write."""
    ids, table, positions, weights, eps, head, head_scales, heads, keys, _, length = inputs
    (batch, tokens), (layers, size) = ids.shape, (len(keys), keys.shape[-1] - 4)
    seen = [to_vectors(cache).double() for cache in caches]
    logits = torch.full((batch, tokens, len(head)), math.nan, dtype=torch.float64)
    written = torch.zeros(2, layers, batch, heads, tokens, size, dtype=torch.float64)
    for b, start in enumerate(length.tolist()):
        if start < 0:
            continue
        end = start + tokens
        x = table[ids[b]].double() + positions[start:end].double()
        for i in range(layers):
            layer = weights[16 * i : 16 * i + 16]
            qkv = product(layer_norm(x, layer[0:2], eps[2 * i]), layer[2:5]).view(tokens, 3, heads, size)
            query, written[0, i, b], written[1, i, b] = qkv.permute(1, 2, 0, 3)
            key, value = (vectors[i, b, :, :end] for vectors in seen)
            scores = query @ key.transpose(1, 2) / math.sqrt(size)
            future = torch.ones(tokens, end, dtype=torch.bool).triu(start + 1)
            attended = scores.masked_fill(future, -math.inf).softmax(-1) @ value
            x = x + product(attended.transpose(0, 1).flatten(1), layer[5:8])
            inner = product(layer_norm(x, layer[8:10], eps[2 * i + 1]), layer[10:13])
            x = x + product(inner * (1 + torch.erf(inner / math.sqrt(2))) / 2, layer[13:16])
        logits[b] = product(layer_norm(x, weights[-2:], eps[-1]), [head, None, head_scales])
    return logits, [*written]


def check(inputs: tuple[Any, ...], module: Any = ops) -> None:
    *model, keys, values, length = inputs
    caches = [keys.clone(), values.clone()]
    got = call(module, "decode_step", *model, *caches, length)
    logits, written = expected_of(inputs, caches)
    error = 1e-3 if inputs[5].dtype == torch.int8 else 2e-5
    torch.testing.assert_close(got.double(), logits, atol=error, rtol=0, equal_nan=True)
    place, tokens = torch.arange(keys.shape[3]) - length[:, None], inputs[0].shape[1]
    is_old = ((place < 0) | (place >= tokens) | (length < 0)[:, None])[None, :, None, :, None]
    for before, after, vectors in zip((keys, values), caches, written, strict=True):
        assert torch.equal(after.where(is_old, 0), before.where(is_old, 0)), "other entries were written to"
        for b, start in enumerate(length.tolist()):
            if start >= 0:
                _check_entries(after[:, b, :, start : start + tokens], vectors[:, b], error)


def _check_entries(entries: Tensor, vectors: Tensor, error: float) -> None:
    """Half a level from the numbers, and as fine a level as there is."""
    largest = vectors.abs().amax(-1, keepdim=True)
    off = (to_vectors(entries).double() - vectors).abs()
    assert (off <= largest / 254 + 4 * error).all()
    scale = entries[..., -4:].clone(memory_format=torch.contiguous_format).view(torch.float32).double()
    torch.testing.assert_close(scale * 127, largest, atol=4 * error, rtol=0)


@pytest.mark.parametrize("dtype", WEIGHTS)
def test_equals_fp64(isa: str, dtype: torch.dtype) -> None:
    for i, (batch, tokens) in enumerate(((1, 1), (1, 2), (1, 8), (2, 1), (3, 2), (5, 1), (2, 8), (16, 1), (19, 1))):
        width, heads = ((20, 2), (72, 3), (128, 2), (57, 3))[i % 4]
        check(int8_inputs(batch, tokens, width, heads, (0, 7, 33)[i % 3], dtype, bias=i % 2 == 0))


def test_twin_equals_fp64() -> None:
    for length in (5, [4, -1, 0]):
        check(int8_inputs(3, 2, 72, 3, length, torch.float32, bias=True), torch_ops)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    tokens=st.integers(1, 5),
    head_size=st.integers(2, 70),
    heads=st.integers(1, 3),
    lengths=st.lists(st.integers(-1, 90), min_size=1, max_size=5),
    dtype=st.sampled_from(WEIGHTS),
)
def test_any_shape(tokens: int, head_size: int, heads: int, lengths: list[int], dtype: torch.dtype) -> None:
    width = max(head_size * heads, 4) // heads * heads
    if width >= 4:
        check(int8_inputs(len(lengths), tokens, width, heads, lengths, dtype, layers=1))


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    lengths=st.lists(st.integers(-1, 90), min_size=1, max_size=40),
    tokens=st.integers(1, 5),
    threads=st.integers(1, 3),
    dtype=st.sampled_from(WEIGHTS),
)
def test_a_token_of_a_row_in_a_batch_is_the_same_alone(isa, use_threads, lengths, tokens, threads, dtype) -> None:
    """To the bit, in logits and entries, whatever the other rows, the tokens beside it and the threads."""
    use_threads(threads)
    ids, *model, keys, values, length = int8_inputs(len(lengths), tokens, 72, 3, lengths, dtype, bias=True)
    whole, *caches = results((ids, *model, keys, values, length))
    use_threads(1)
    for b, start in enumerate(lengths):
        row = slice(b, b + 1)
        for t in range(tokens):
            at = length[row] + t if start >= 0 else length[row]
            alone = call(ops, "decode_step", ids[row, t : t + 1], *model, keys[:, row], values[:, row], at)
            assert torch.equal(alone[0, 0].nan_to_num(7), whole[b, t].nan_to_num(7)), f"row {b}, token {t} differs"
    assert torch.equal(keys, caches[0]) and torch.equal(values, caches[1])


@pytest.mark.parametrize(
    ("which", "size"),
    [(which, size) for which in ("keys", "values") for size in (0.0, 1e-42, 1e-30, 1e15)] + [("keys", 1e35)],
)
def test_extreme_entries(isa: str, which: str, size: float) -> None:
    """All that a head remembers is as small or as large as the float32 sums behind it allow."""
    for module in (ops, torch_ops):
        inputs = int8_inputs(2, 2, 72, 3, [5, 40], torch.float32, bias=True, layers=1)
        part = slice(72, 144) if which == "keys" else slice(144, 216)
        bias = inputs[3][3]
        inputs[3][2][part], bias[part] = 0.0, torch.full((72,), size)
        keys, values, length = inputs[8:]
        for b, start in enumerate(length.tolist()):
            old = (keys if which == "keys" else values)[:, b, :, :start]
            old.copy_(to_entries(torch.full((*old.shape[:-1], 24), size), torch.int8))
        logits = call(module, "decode_step", *inputs)
        assert logits.isfinite().all()
        new = to_vectors((keys if which == "keys" else values)[0, 0, :, 5])
        torch.testing.assert_close(new, torch.full_like(new, size), rtol=1e-6, atol=1e-35)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_shows_in_its_row_only(isa: str, value: float) -> None:
    for module in (ops, torch_ops):
        ids, table, *rest = int8_inputs(3, 1, 72, 3, [5, 0, 9], torch.float32)
        ids = torch.tensor([[1], [2], [3]])
        table[2, 70] = value
        logits = call(module, "decode_step", ids, table, *rest)
        assert logits.isfinite().all(-1).flatten().tolist() == [True, False, True]
        for cache in rest[6:8]:
            entry = to_vectors(cache[0, 1, :, 0])
            assert entry.isnan().all()


def test_garbage_beyond_the_valid_part_is_not_read(isa: str) -> None:
    inputs = int8_inputs(2, 2, 20, 2, 9)
    nan = torch.tensor([math.nan], dtype=torch.float32).view(torch.int8)
    for cache in inputs[8:10]:
        cache[..., 9:, -4:] = nan
    assert call(ops, "decode_step", *inputs).isfinite().all()


def test_memory_around_the_entries_is_untouched(isa: str) -> None:
    ids, *model, _, _, length = decode_inputs(2, 3, 20, 2, 4)
    buffers = torch.randint(-90, 90, (2, 4, 4, 2, 14, 18), dtype=torch.int8)
    buffers[..., 12:16] = torch.ones(1, dtype=torch.float32).view(torch.int8)
    before = buffers.clone()
    call(
        ops,
        "decode_step",
        ids,
        *model,
        buffers[0, 1:3, 1:3, :, 2:12, 2:16],
        buffers[1, 1:3, 1:3, :, 2:12, 2:16],
        length,
    )
    changed = torch.zeros_like(buffers, dtype=torch.bool)
    changed[:, 1:3, 1:3, :, 6:9, 2:16] = True
    assert torch.equal(buffers.masked_fill(changed, 0), before.masked_fill(changed, 0))
    assert (buffers != before)[changed].any()


@pytest.mark.parametrize("module", [ops, torch_ops])
def test_refused(module: Any) -> None:
    *inputs, keys, values, length = int8_inputs(2, 1, 24, 2, 4)
    with pytest.raises(ValueError, match=r"expected key_cache of shape .*16\].*got .*15"):
        call(module, "decode_step", *inputs, keys[..., :15], values, length)
    with pytest.raises(ValueError, match=r"expected value_cache of .*int8"):
        call(module, "decode_step", *inputs, keys, values.float(), length)
    with pytest.raises(ValueError, match=r"expected key_cache \(or on the CPU int8\) of dtype float32"):
        call(module, "decode_step", *inputs, keys.short(), values.short(), length)


def test_entries_of_vectors() -> None:
    vectors = torch.randn(4, 50, 33) * torch.logspace(-30, 30, 50)[:, None]
    back = to_vectors(to_entries(vectors, torch.int8))
    largest = vectors.abs().amax(-1, keepdim=True)
    assert ((back - vectors).abs() <= largest / 253.9).all()
    torch.testing.assert_close(back.abs().amax(-1, keepdim=True), largest, rtol=1e-6, atol=0)
    assert to_vectors(to_entries(torch.zeros(2, 3), torch.int8)).eq(0).all()
