"""decode_step against fp64 and its reference in torch: dtypes, shapes, batches, layouts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.decode_steps import FLOATS, WEIGHTS, reference, results
from support.op_calls import call

from bark_accel.ops import native as ops
from bark_accel.ops import reference as torch_ops

from .conftest import decode_inputs

# Absolute, for logits of unit variance. Weights count as they are stored; beside int8, activations are rounded to 16
# bits. Keys and values are rounded to the caches' dtype, here and there at different sides of a tie.
WEIGHT_ERROR = dict.fromkeys(FLOATS, 2e-5) | {torch.int8: 1e-3}
CACHE_ERROR = {torch.float32: 0.0, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def check(inputs: tuple[Any, ...]) -> None:
    *_, keys, values, length = inputs
    weights_dtype, before, tokens = inputs[5].dtype, length.clone(), inputs[0].shape[1]
    expected, *caches = reference(*inputs)
    tolerance = WEIGHT_ERROR[weights_dtype] + CACHE_ERROR[keys.dtype]
    got = call(ops, "decode_step", *inputs)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=0, equal_nan=True)
    place = torch.arange(keys.shape[3]) - length[:, None]
    old = ((place < 0) | (place >= tokens) | (length < 0)[:, None])[None, :, None, :, None]
    for cache, after in zip((keys, values), caches, strict=True):
        torch.testing.assert_close(cache.float(), after.float(), atol=tolerance, rtol=0)
        assert torch.equal(cache.where(old, 0), after.where(old, 0))
    assert torch.equal(length, before)


@pytest.mark.parametrize("cache", FLOATS)
@pytest.mark.parametrize("dtype", WEIGHTS)
def test_equals_fp64(isa: str, dtype: torch.dtype, cache: torch.dtype) -> None:
    """Widths that are no multiple of a vector or of an int8 group; with and without biases."""
    for i, (batch, tokens) in enumerate(((1, 1), (1, 2), (1, 3), (1, 8), (2, 1), (3, 2), (5, 1), (2, 8), (16, 1))):
        width, heads = ((20, 2), (72, 3), (64, 4))[i % 3]
        check(decode_inputs(batch, tokens, width, heads, (0, 7, 33)[i % 3], dtype, cache=cache, bias=i % 2 == 0))


@pytest.mark.parametrize("table", FLOATS)
def test_tables_of_every_dtype(isa: str, table: torch.dtype) -> None:
    for width, heads in ((20, 2), (64, 4)):
        check(decode_inputs(2, 2, width, heads, 3, table=table))


@pytest.mark.parametrize("dtype", WEIGHTS)
def test_odd_inner_width_and_a_head_of_any_size(isa: str, dtype: torch.dtype) -> None:
    for inner, outputs in ((1, 1), (70, 3), (129, 2)):
        check(decode_inputs(1, 2, 24, 3, 4, dtype, inner=inner, outputs=outputs))


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    tokens=st.integers(1, 5),
    head_size=st.integers(1, 40),
    heads=st.integers(1, 4),
    lengths=st.lists(st.integers(-1, 70), min_size=1, max_size=5),
    dtype=st.sampled_from(WEIGHTS),
    bias=st.booleans(),
)
def test_any_shape(tokens: int, head_size: int, heads: int, lengths: list[int], dtype: torch.dtype, bias: bool) -> None:
    # A row of two has no variance but its sign: rounding decides.
    width = max(head_size * heads, 4) // heads * heads
    if width >= 4:
        check(decode_inputs(len(lengths), tokens, width, heads, lengths, dtype, bias=bias, layers=1))


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    lengths=st.lists(st.integers(-1, 90), min_size=1, max_size=40),
    tokens=st.integers(1, 3),
    cache=st.sampled_from(FLOATS),
    threads=st.integers(1, 3),
)
@pytest.mark.parametrize("dtype", WEIGHTS)
def test_a_row_in_a_batch_is_the_same_row_alone(
    isa: str,
    use_threads: Callable[[int], None],
    dtype: torch.dtype,
    lengths: list[int],
    tokens: int,
    cache: torch.dtype,
    threads: int,
) -> None:
    """To the bit, in logits and caches, whatever the lengths and the number of the other rows."""
    use_threads(threads)
    ids, *model, keys, values, length = decode_inputs(
        len(lengths), tokens, 20, 2, lengths, dtype, cache=cache, bias=True
    )
    whole, *caches = results((ids, *model, keys, values, length.repeat_interleave(2)[::2]))
    for b, start in enumerate(lengths):
        row = slice(b, b + 1)
        alone = call(ops, "decode_step", ids[row], *model, keys[:, row], values[:, row], length[row])
        same = torch.equal(alone[0], whole[b])
        assert same or (start < 0 and alone.isnan().all() and whole[b].isnan().all()), f"row {b} at {start} differs"
    assert torch.equal(keys, caches[0]) and torch.equal(values, caches[1])


def test_nothing_of_an_idle_row_is_looked_at() -> None:
    inputs = decode_inputs(3, 2, 24, 2, [4, -1, 0])
    inputs[0][1] = 99
    inputs[8][:, 1], inputs[9][:, 1] = math.nan, math.nan
    for module in (ops, torch_ops):
        assert call(module, "decode_step", *inputs).isnan().all(-1).tolist() == [[False] * 2, [True] * 2, [False] * 2]
    assert inputs[8][:, 1].isnan().all() and inputs[9][:, 1].isnan().all()


def test_all_rows_idle() -> None:
    inputs = decode_inputs(2, 1, 24, 2, [-1, -1])
    for module in (ops, torch_ops):
        assert call(module, "decode_step", *inputs).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_twin_equals_fp64(dtype: torch.dtype) -> None:
    inputs = decode_inputs(3, 2, 72, 3, [5, 0, 9], dtype, bias=True)
    expected, keys, values = reference(*inputs)
    torch.testing.assert_close(call(torch_ops, "decode_step", *inputs).double(), expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(inputs[8], keys, atol=2e-5, rtol=0)
    torch.testing.assert_close(inputs[9], values, atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype", WEIGHTS)
def test_the_first_and_the_last_place_of_the_cache(isa: str, dtype: torch.dtype) -> None:
    for length in (0, 12):
        check(decode_inputs(2, 1, 24, 2, length, dtype, room=0))


@pytest.mark.parametrize("dtype", WEIGHTS)
def test_one_token_at_a_time_equals_all_at_once(isa: str, dtype: torch.dtype) -> None:
    inputs = decode_inputs(2, 6, 72, 3, 4, dtype, bias=True)
    ids, *model, keys, values, length = inputs
    whole = call(ops, "decode_step", ids, *model, keys.clone(), values.clone(), length)
    parts = [call(ops, "decode_step", ids[:, t : t + 1], *model, keys, values, length + t) for t in range(6)]
    tolerance = 2e-3 if dtype == torch.int8 else 2e-5
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", WEIGHTS)
def test_rows_of_a_batch_do_not_mix(isa: str, dtype: torch.dtype) -> None:
    ids, *model, keys, values, length = decode_inputs(5, 1, 72, 3, 4, dtype)
    whole = call(ops, "decode_step", ids, *model, keys.clone(), values.clone(), length)
    for row in range(5):
        one = slice(row, row + 1)
        alone = call(ops, "decode_step", ids[one], *model, keys[:, one], values[:, one], length[one])
        torch.testing.assert_close(alone[0], whole[row], atol=2e-3 if dtype == torch.int8 else 2e-5, rtol=0)


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("cache", [torch.float32, torch.float16])
def test_neither_tokens_nor_rows_change_a_bit(isa: str, dtype: torch.dtype, cache: torch.dtype) -> None:
    """1 to 16 tokens at once, and 1 to 16 rows, give what each gives alone: verified drafts rely on it."""
    for count in range(2, 17):
        width, heads = ((20, 2), (72, 3), (136, 2))[count % 3]
        before = (5, 37)[count // 4 % 2]
        for shape, dim in (((1, count), 1), ((count, 1), 0)):
            ids, *model, keys, values, length = decode_inputs(
                *shape, width, heads, before, dtype, cache=cache, bias=True
            )
            whole, *caches = results((ids, *model, keys, values, length))
            for i in range(count):
                rows = slice(None) if dim else slice(i, i + 1)
                row_keys, row_values = keys[:, rows], values[:, rows]
                alone = call(
                    ops, "decode_step", ids.narrow(dim, i, 1), *model, row_keys, row_values, length[rows] + i * dim
                )
                assert torch.equal(alone, whole.narrow(dim, i, 1)), f"{shape} rows and tokens: {i} differs"
            assert torch.equal(keys, caches[0]) and torch.equal(values, caches[1])


@pytest.mark.parametrize("rows", [5, 8, 16])
def test_int8_sums_of_many_groups(isa: str, rows: int) -> None:
    """Of 18 groups of weights, the last of them not whole, and of blocks of weight rows with some left over."""
    inputs = decode_inputs(rows, 1, 72, 3, 9, torch.int8, inner=1100, outputs=77, bias=True, layers=1)
    ids, *model, keys, values, length = inputs
    whole = results(inputs)[0]
    for i in range(rows):
        row = slice(i, i + 1)
        alone = call(ops, "decode_step", ids[row], *model, keys[:, row].clone(), values[:, row].clone(), length[row])
        assert torch.equal(alone[0], whole[i]), f"row {i} differs"
    check(inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_every_number_of_rows(isa: str, dtype: torch.dtype) -> None:
    for batch in (*range(1, 19), 31, 32, 33, 40):
        check(decode_inputs(batch, 1, 20, 2, 3, dtype, layers=1))


def test_caches_of_different_layouts(isa: str) -> None:
    """Positions before heads, heads before positions, the batch innermost but one."""
    orders = [(0, 1, 2, 3, 4), (0, 1, 3, 2, 4), (3, 2, 0, 1, 4), (0, 3, 2, 1, 4)]
    for dtype in WEIGHTS:
        for i, order in enumerate(orders):
            *inputs, keys, values, length = decode_inputs(2, 2, 24, 3, 4, dtype)
            other = orders[i - 1]
            moved = [
                cache.permute(o).contiguous().permute(sorted(range(5), key=lambda d, o=o: o[d]))
                for cache, o in ((keys, order), (values, other))
            ]
            assert moved[0].stride() != moved[1].stride() and torch.equal(moved[0], keys)
            check((*inputs, *moved, length))


def test_memory_around_the_caches_is_untouched(isa: str) -> None:
    for dtype in WEIGHTS:
        ids, *model, _, _, length = decode_inputs(2, 3, 20, 2, 4, dtype)
        buffers = torch.randn(2, 4, 4, 2, 14, 10)
        before = buffers.clone()
        call(ops, "decode_step", ids, *model, buffers[0, 1:3, 1:3, :, 2:12], buffers[1, 1:3, 1:3, :, 2:12], length)
        changed = torch.zeros_like(buffers, dtype=torch.bool)
        changed[:, 1:3, 1:3, :, 6:9] = True
        assert torch.equal(buffers.masked_fill(changed, 0), before.masked_fill(changed, 0))
        assert not (buffers == before)[changed].any()


def test_garbage_beyond_the_valid_part_is_not_read(isa: str) -> None:
    inputs = decode_inputs(2, 2, 20, 2, 9)
    inputs[8][..., 9:, :], inputs[9][..., 9:, :] = math.nan, math.nan
    assert call(ops, "decode_step", *inputs).isfinite().all()


def test_no_rows() -> None:
    for batch, tokens in ((0, 1), (2, 0)):
        inputs = decode_inputs(batch, tokens, 24, 2, 4)
        before = inputs[8].clone()
        for module in (ops, torch_ops):
            assert call(module, "decode_step", *inputs).shape == (batch, tokens, 19)
        assert torch.equal(inputs[8], before)
