"""int16_attention against fp64 over shapes, dtypes, strides and masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bark_accel.ops import native as ops

from .conftest import int16_attention_inputs

# Absolute, for unit normal inputs.
TOLERANCE = 1e-3


def reference(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    tokens, keys = query.shape[1], key.shape[2]
    scores = query.double().transpose(1, 2) @ key.double().transpose(-1, -2) / query.shape[3] ** 0.5
    if causal:
        hidden = ~torch.ones(tokens, keys, dtype=torch.bool).tril(keys - tokens)
        scores = scores.masked_fill(hidden, float("-inf"))
    return (scores.softmax(-1) @ value.double()).transpose(1, 2).flatten(2)


def check(inputs: tuple) -> None:
    got = ops.int16_attention(*inputs)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), reference(*inputs), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [1, 8, 24, 64, 65, 256])
def test_equals_fp64(isa: str, dtype: torch.dtype, causal: bool, head_dim: int) -> None:
    for tokens, keys in ((1, 1), (1, 300), (14, 14), (15, 256), (40, 257), (130, 600)):
        check(int16_attention_inputs(2, tokens, 3, head_dim, keys, dtype, causal=causal))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(1, 3), st.integers(1, 60), st.integers(1, 4), st.integers(1, 90), st.integers(0, 600), st.booleans())
def test_any_shape(batch: int, tokens: int, heads: int, head_dim: int, more: int, causal: bool) -> None:
    check(int16_attention_inputs(batch, tokens, heads, head_dim, tokens + more, causal=causal))


def test_more_queries_than_keys(isa: str) -> None:
    check(int16_attention_inputs(1, 50, 2, 16, 7))


def test_large_scores(isa: str) -> None:
    """One key takes all the weight; others underflow. Running maxima rise and fall between groups of keys."""
    for sign in (1.0, -1.0):
        query, key, value, _ = int16_attention_inputs(1, 30, 2, 16, 700)
        key += sign * torch.linspace(-3, 3, 700)[:, None]
        inputs = (query * 20 + 20, key, value, False)
        # The scores are in the hundreds, their rounding error about 2e-4 of that.
        torch.testing.assert_close(ops.int16_attention(*inputs).double(), reference(*inputs), atol=0.3, rtol=0)
        assert ops.int16_attention(*inputs).isfinite().all()


def test_equal_scores_average_the_values(isa: str) -> None:
    query, key, value, _ = int16_attention_inputs(1, 3, 2, 16, 512)
    got = ops.int16_attention(torch.zeros_like(query), key, value)
    expected = value.mean(2)[:, None].expand(1, 3, 2, 16).flatten(2)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)


def test_hidden_keys_do_not_count(isa: str) -> None:
    query, key, value, _ = int16_attention_inputs(1, 9, 2, 16, 300, causal=True)
    before = ops.int16_attention(query, key, value, True)
    key[:, :, -3:] = float("nan")
    after = ops.int16_attention(query, key, value, True)
    assert torch.equal(after[:, :6], before[:, :6]) and after[:, 6:].isnan().all()


def test_nan_query(isa: str) -> None:
    query, key, value, _ = int16_attention_inputs(1, 20, 2, 16, 30)
    query[0, 4, 1, 2] = float("nan")
    nan = ops.int16_attention(query, key, value).isnan().view(20, 2, 16)
    assert nan[4, 1].all() and nan.sum() == 16


def test_empty_batch() -> None:
    assert ops.int16_attention(*int16_attention_inputs(0, 3, 2, 8, 5)).shape == (0, 3, 16)
