"""Whole generations on the GPU: stock's tokens and random state for the same seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bark_models import SMALL, build, texts
from parity import accelerated_copy, assert_same_tokens, run

TOKEN_STAGES = ("semantic", "coarse", "fine")
LENGTHS = {1: [9], 3: [5, 9, 2]}


def inputs(rows: int) -> dict[str, Any]:
    return {key: value.cuda() for key, value in texts(SMALL, LENGTHS[rows]).items()}


def run_on_gpu(model: Any, seed: int, **kwargs: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    outputs, _, _ = run(model, seed, **kwargs)
    return outputs, torch.cuda.get_rng_state()


@pytest.mark.parametrize("backend", ("native", "torch"))
@pytest.mark.parametrize("rows", tuple(LENGTHS))
@pytest.mark.parametrize("options", ({}, {"do_sample": False}), ids=("sampled", "greedy"))
def test_float32_tokens_equal_stock(backend: str, rows: int, options: dict[str, Any]) -> None:
    stock = build(SMALL).cuda()
    fast = accelerated_copy(stock, backend=backend)
    for seed in range(3):
        expected, expected_state = run_on_gpu(stock, seed, **inputs(rows), **options)
        got, state = run_on_gpu(fast, seed, **inputs(rows), **options)
        for stage in TOKEN_STAGES:
            assert_same_tokens(stage, expected[stage], got[stage])
        assert torch.equal(state, expected_state)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_16_bit_models_run_on_the_kernels(dtype: torch.dtype) -> None:
    model = accelerated_copy(build(SMALL).to(dtype).cuda(), backend="native")
    assert torch.isfinite(model.generate(**inputs(1))).all()


@pytest.mark.parametrize("weights", ("float16", "bfloat16", "int8"))
def test_smaller_weights_run_on_the_kernels(weights: str) -> None:
    model = accelerated_copy(build(SMALL).cuda(), backend="native", weights=weights)
    assert torch.isfinite(model.generate(**inputs(1))).all()
