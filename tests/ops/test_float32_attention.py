"""float32_attention against fp64 over shapes, strides and masks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bark_accel.ops import native as ops

from .conftest import int16_attention_inputs
from .test_int16_attention import reference

# Absolute, for unit normal inputs: some units of the last place of the values' sum.
TOLERANCE = 3e-6


def check(inputs: tuple) -> None:
    got = ops.float32_attention(*inputs)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), reference(*inputs), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [1, 8, 24, 64, 65, 256])
def test_equals_fp64(isa: str, causal: bool, head_dim: int) -> None:
    for tokens, keys in ((1, 1), (1, 300), (14, 14), (15, 256), (40, 257), (130, 600)):
        check(int16_attention_inputs(2, tokens, 3, head_dim, keys, causal=causal))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(1, 3), st.integers(1, 80), st.integers(1, 4), st.integers(1, 90), st.integers(0, 300), st.booleans())
def test_any_shape(batch: int, tokens: int, heads: int, head_dim: int, more: int, causal: bool) -> None:
    check(int16_attention_inputs(batch, tokens, heads, head_dim, tokens + more, causal=causal))


@pytest.mark.parametrize("causal", [False, True])
def test_views_of_one_projection(isa: str, causal: bool) -> None:
    """Keys whose rows are far apart, as the fine stage has them."""
    query, key, value = torch.randn(2, 200, 3, 12, 64).transpose(1, 3).unbind(2)
    check((query.transpose(1, 2), key, value, causal))


def test_no_worse_than_torch(isa: str) -> None:
    query, key, value = torch.randn(1, 300, 3, 4, 64).transpose(1, 3).unbind(2)
    inputs = (query.transpose(1, 2), key, value, False)
    expected = reference(*inputs)
    theirs = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    assert (ops.float32_attention(*inputs) - expected).norm() < 1.5 * (theirs - expected).norm() + 1e-7


def test_more_queries_than_keys(isa: str) -> None:
    check(int16_attention_inputs(1, 150, 2, 16, 7))


def test_large_scores(isa: str) -> None:
    """One key takes all the weight; others underflow. Running maxima rise and fall between tiles of keys."""
    for sign in (1.0, -1.0):
        query, key, value, _ = int16_attention_inputs(1, 30, 2, 16, 700)
        key += sign * torch.linspace(-3, 3, 700)[:, None]
        inputs = (query * 20 + 20, key, value, False)
        got = ops.float32_attention(*inputs)
        # The scores are in the hundreds, their rounding error about 1e-5 of the result.
        torch.testing.assert_close(got.double(), reference(*inputs), atol=1e-3, rtol=0)


def test_no_query_depends_on_others_or_threads(isa: str) -> None:
    query, key, value, _ = int16_attention_inputs(2, 150, 3, 20, 333)
    whole = ops.float32_attention(query, key, value, True)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            assert torch.equal(ops.float32_attention(query, key, value, True), whole)
            for first in (1, 63, 64, 130, 149):
                assert torch.equal(ops.float32_attention(query[:, first:], key, value, True), whole[:, first:])
            seen = 333 - 150 + 70
            got = ops.float32_attention(query[:, :70], key[:, :, :seen], value[:, :, :seen], True)
            assert torch.equal(got, whole[:, :70])
    finally:
        torch.set_num_threads(before)


def test_equals_static_cache_attention(isa: str) -> None:
    query, key, value, _ = int16_attention_inputs(2, 90, 3, 64, 90)
    keys, values = torch.zeros(2, 2, 3, 100, 64).unbind(0)
    cached = ops.static_cache_attention(
        query, key.transpose(1, 2), value.transpose(1, 2), keys, values, torch.tensor([0, 0])
    )
    assert torch.equal(ops.float32_attention(query, key, value, True), cached)


def test_bad_numbers(isa: str) -> None:
    """A NaN query is alone; a NaN key reaches those that see it."""
    query, key, value, _ = int16_attention_inputs(1, 20, 2, 16, 30)
    query[0, 4, 1, 2] = float("nan")
    nan = ops.float32_attention(query, key, value).isnan().view(20, 2, 16)
    assert nan[4, 1].all() and nan.sum() == 16
    query, key, value, _ = int16_attention_inputs(1, 9, 2, 16, 300)
    before = ops.float32_attention(query, key, value, True)
    key[:, :, -3:] = float("nan")
    after = ops.float32_attention(query, key, value, True)
    assert torch.equal(after[:, :6], before[:, :6]) and after[:, 6:].isnan().all()


def test_empty_batch() -> None:
    assert ops.float32_attention(*int16_attention_inputs(0, 3, 2, 8, 5)).shape == (0, 3, 16)
