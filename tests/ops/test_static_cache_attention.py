"""static_cache_attention against an fp64 reference over shapes, dtypes, strides and cache contents."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bark_accel.ops import native as ops
from bark_accel.ops import reference as torch_ops

from .conftest import attention_inputs

# Absolute, for unit normal inputs; the 16-bit ones are half an ulp at 4.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def reference(query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, length: Tensor) -> Tensor:
    """fp64, row by row, from the caches as they were before the call."""
    batch, tokens, heads, head_dim = query.shape
    out = torch.full((batch, tokens, heads, head_dim), math.nan, dtype=torch.float64)
    for b, start in enumerate(length.tolist()):
        if start < 0:
            continue
        k = torch.cat([keys[b, :, :start], key[b].transpose(0, 1)], dim=1).double()
        v = torch.cat([values[b, :, :start], value[b].transpose(0, 1)], dim=1).double()
        for t in range(tokens):
            seen = slice(0, start + t + 1)
            scores = torch.einsum("hd,hnd->hn", query[b, t].double(), k[:, seen]) / math.sqrt(head_dim)
            out[b, t] = torch.einsum("hn,hnd->hd", scores.softmax(-1), v[:, seen])
    return out.reshape(batch, tokens, heads * head_dim)


def check(inputs: tuple[Tensor, ...]) -> None:
    query, key, value, keys, values, length = inputs
    expected, lengths = reference(*inputs), length.clone()
    for cache, new in ((keys, key), (values, value)):
        cache._expected = cache.clone()
        for b, start in enumerate(length.tolist()):
            if start >= 0:
                cache._expected[b, :, start : start + query.shape[1]] = new[b].transpose(0, 1)
    got = ops.static_cache_attention(*inputs)
    assert got.dtype == query.dtype
    torch.testing.assert_close(got.double(), expected, atol=TOLERANCES[query.dtype], rtol=0, equal_nan=True)
    for cache in (keys, values):
        assert torch.equal(cache, cache._expected)
    assert torch.equal(length, lengths)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("head_dim", [8, 16, 24, 64, 65])
def test_equals_fp64(isa: str, dtype: torch.dtype, head_dim: int) -> None:
    for tokens, length in (
        (1, 0),
        (1, 7),
        (1, 130),
        (2, 3),
        (3, 0),
        (4, 96),
        (17, 0),
        (33, 5),
        (64, 31),
        (130, 100),
    ):
        check(attention_inputs(2, tokens, 3, head_dim, length, dtype))


LENGTHS = st.lists(st.integers(-1, 220), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(1, 130), st.integers(1, 4), st.integers(1, 70), LENGTHS)
def test_any_shape(tokens: int, heads: int, head_dim: int, lengths: list[int]) -> None:
    check(attention_inputs(len(lengths), tokens, heads, head_dim, lengths))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(1, 70), st.sampled_from(list(TOLERANCES)), LENGTHS)
def test_a_row_in_a_batch_is_the_same_row_alone(isa: str, tokens: int, dtype: torch.dtype, lengths: list[int]) -> None:
    """To the bit, whatever the lengths of the other rows; also behind strides of the lengths."""
    *inputs, length = attention_inputs(len(lengths), tokens, 3, 20, lengths, dtype)
    keys, values = (cache.clone() for cache in inputs[3:])
    strided = length.repeat_interleave(2)[::2]
    whole = ops.static_cache_attention(*inputs[:3], keys, values, strided)
    for b in range(len(lengths)):
        row = slice(b, b + 1)
        alone = ops.static_cache_attention(*(x[row] for x in inputs), length[row])
        assert torch.equal(alone[0], whole[b]) or (lengths[b] < 0 and alone.isnan().all() and whole[b].isnan().all())
    assert torch.equal(keys, inputs[3]) and torch.equal(values, inputs[4])


def test_twin_equals_fp64() -> None:
    for tokens, length in ((1, 9), (20, 0), (20, 13), (3, [6, 0])):
        inputs = attention_inputs(2, tokens, 3, 16, length)
        expected = reference(*inputs)
        got = torch_ops.static_cache_attention(*inputs)
        torch.testing.assert_close(got.double(), expected, atol=TOLERANCES[torch.float32], rtol=0)


def test_memory_around_the_caches_is_untouched(isa: str) -> None:
    for tokens in (1, 20):
        buffers = torch.randn(2, 4, 3, 40, 16)
        before = buffers.clone()
        query, key, value, *_ = attention_inputs(2, tokens, 3, 16, 0)
        ops.static_cache_attention(
            query, key, value, buffers[0, 1:3, :, 2:36], buffers[1, 1:3, :, 2:36], torch.tensor([5, 5])
        )
        before[0, 1:3, :, 7 : 7 + tokens] = key.transpose(1, 2)
        before[1, 1:3, :, 7 : 7 + tokens] = value.transpose(1, 2)
        assert torch.equal(buffers, before)


@pytest.mark.parametrize("tokens", [1, 20])
def test_garbage_beyond_the_valid_part_is_not_read(isa: str, tokens: int) -> None:
    query, key, value, keys, values, length = attention_inputs(1, tokens, 2, 16, 9)
    keys[:, :, 9:], values[:, :, 9:] = float("nan"), float("nan")
    assert ops.static_cache_attention(query, key, value, keys, values, length).isfinite().all()


@pytest.mark.parametrize("tokens", [1, 3, 20])
def test_a_nan_key_reaches_the_queries_that_see_it_and_no_other(isa: str, tokens: int) -> None:
    inputs = attention_inputs(1, tokens, 2, 16, 9)
    last = tokens - 1
    inputs[1][0, last, 0, 3] = float("nan")
    nan = ops.static_cache_attention(*inputs).isnan().view(tokens, 2, 16)
    assert nan[last, 0].all() and nan.sum() == 16


@pytest.mark.parametrize("tokens", [1, 20])
def test_nan_query_and_value(isa: str, tokens: int) -> None:
    inputs = attention_inputs(1, tokens, 2, 16, 9)
    inputs[0][0, 0, 1, 0] = float("nan")
    nan = ops.static_cache_attention(*inputs).isnan().view(tokens, 2, 16)
    assert nan[0, 1].all() and nan.sum() == 16
    inputs = attention_inputs(1, tokens, 2, 16, 9)
    inputs[4][0, 1, 4, 2] = float("nan")
    nan = ops.static_cache_attention(*inputs).isnan().view(tokens, 2, 16)
    assert nan[:, 1, 2].all() and nan.sum() == tokens


def test_scores_of_minus_infinity_have_no_weight(isa: str) -> None:
    for tokens in (1, 20):
        query, key, value, keys, values, length = attention_inputs(1, tokens, 1, 8, 200)
        query[..., 0] = 1.0
        keys[:, :, :150, 0] = float("-inf")
        expected = torch_ops.static_cache_attention(query, key, value, keys.clone(), values.clone(), length)
        got = ops.static_cache_attention(query, key, value, keys, values, length)
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=0)


def test_large_scores_do_not_overflow(isa: str) -> None:
    for tokens in (1, 20):
        inputs = attention_inputs(1, tokens, 2, 64, 50)
        inputs[0].mul_(300.0)
        expected = reference(*inputs)
        torch.testing.assert_close(ops.static_cache_attention(*inputs).double(), expected, atol=1e-3, rtol=0)


def test_steps_equal_one_block(isa: str) -> None:
    query, key, value, keys, values, length = attention_inputs(2, 12, 3, 16, 4)
    whole = ops.static_cache_attention(query, key, value, keys.clone(), values.clone(), length)
    parts = []
    for t in range(12):
        step = (x[:, t : t + 1] for x in (query, key, value))
        parts.append(ops.static_cache_attention(*step, keys, values, length + t))
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=2e-6, rtol=0)


def test_empty_batch() -> None:
    inputs = attention_inputs(0, 3, 2, 8, 1)
    assert ops.static_cache_attention(*inputs).shape == (0, 3, 16)
