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
    start, (batch, tokens, heads, head_dim) = int(length), query.shape
    k = torch.cat([keys[:, :, :start], key.transpose(1, 2)], dim=2).double()
    v = torch.cat([values[:, :, :start], value.transpose(1, 2)], dim=2).double()
    out = torch.empty(batch, tokens, heads, head_dim, dtype=torch.float64)
    for t in range(tokens):
        seen = slice(0, start + t + 1)
        scores = torch.einsum("bhd,bhnd->bhn", query[:, t].double(), k[:, :, seen]) / math.sqrt(head_dim)
        out[:, t] = torch.einsum("bhn,bhnd->bhd", scores.softmax(-1), v[:, :, seen])
    return out.reshape(batch, tokens, heads * head_dim)


def check(inputs: tuple[Tensor, ...]) -> None:
    query, key, value, keys, values, length = inputs
    expected = reference(*inputs)
    start, end = int(length), int(length) + query.shape[1]
    for cache, new in ((keys, key), (values, value)):
        cache._expected = cache.clone()
        cache._expected[:, :, start:end] = new.transpose(1, 2)
    got = ops.static_cache_attention(*inputs)
    assert got.dtype == query.dtype
    torch.testing.assert_close(got.double(), expected, atol=TOLERANCES[query.dtype], rtol=0)
    for cache in (keys, values):
        assert torch.equal(cache, cache._expected)
    assert int(length) == start


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


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(1, 3), st.integers(1, 130), st.integers(1, 4), st.integers(1, 70), st.integers(0, 220))
def test_any_shape(batch: int, tokens: int, heads: int, head_dim: int, length: int) -> None:
    check(attention_inputs(batch, tokens, heads, head_dim, length))


def test_twin_equals_fp64() -> None:
    for tokens, length in ((1, 9), (20, 0), (20, 13)):
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
            query, key, value, buffers[0, 1:3, :, 2:36], buffers[1, 1:3, :, 2:36], torch.tensor([5])
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
