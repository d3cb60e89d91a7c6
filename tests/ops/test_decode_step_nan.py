"""decode_step of what is not a number: it stays so, where it belongs."""

from __future__ import annotations

import math

import pytest
import torch
from support.decode_steps import WEIGHTS
from support.op_calls import call

from bark_accel.ops import native as ops

from .conftest import decode_inputs


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["token_table", "positions"])
def test_a_bad_embedding_shows_in_its_row_only(isa: str, dtype: torch.dtype, value: float, name: str) -> None:
    ids, table, positions, *rest = decode_inputs(3, 2, 72, 3, 4, dtype)
    ids = torch.tensor([[1, 2], [3, 4], [5, 6]])
    if name == "token_table":
        table[6, 70] = value
        bad = torch.tensor([[False, False], [False, False], [False, True]])
    else:
        positions[5, 70] = value
        bad = torch.tensor([[False, True]] * 3)
    finite = call(ops, "decode_step", ids, table, positions, *rest).isfinite()
    assert torch.equal(finite.all(-1), ~bad) and torch.equal(finite.any(-1), ~bad)


@pytest.mark.parametrize("index", [0, 2, 5, 8, 10, 13])
@pytest.mark.parametrize("dtype", WEIGHTS)
def test_a_nan_weight_reaches_every_row(isa: str, dtype: torch.dtype, index: int) -> None:
    """In the last column of a weight, or of an int8 weight's scales."""
    inputs = decode_inputs(3, 1, 72, 3, 4, dtype)
    layer = inputs[3]
    weight = layer[index] if layer[index].dim() == 1 else layer[index + 2 if dtype == torch.int8 else index]
    # Of qkv: a value's row, so that no softmax can give it no weight.
    weight[(..., -1) if weight.dim() == 1 else (-1, -1)] = math.nan
    assert call(ops, "decode_step", *inputs).isnan().all()


@pytest.mark.parametrize("dtype", WEIGHTS)
def test_a_nan_in_the_head_shows_in_its_column_only(isa: str, dtype: torch.dtype) -> None:
    inputs = decode_inputs(3, 1, 72, 3, 4, dtype)
    head = inputs[6] if dtype == torch.int8 else inputs[5]
    head[7, -1] = math.nan
    nan = call(ops, "decode_step", *inputs).isnan()
    assert nan[..., 7].all() and int(nan.sum()) == 3


@pytest.mark.parametrize("cache", ["keys", "values"])
@pytest.mark.parametrize("dtype", WEIGHTS)
def test_a_nan_in_a_cache_shows_in_its_row_only(isa: str, dtype: torch.dtype, cache: str) -> None:
    """One number of one head: NaN among finite activations, where a largest magnitude may lose it."""
    inputs = decode_inputs(3, 1, 72, 3, 4, dtype)
    inputs[8 if cache == "keys" else 9][0, 1, 2, 2, 11] = math.nan
    nan = call(ops, "decode_step", *inputs).isnan().all(-1)
    assert nan.flatten().tolist() == [False, True, False]
