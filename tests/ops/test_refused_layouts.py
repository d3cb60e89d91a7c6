"""Tensors that an op refuses for how they lie in memory: strides, gaps, overlaps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bark_accel.ops import native as ops
from bark_accel.ops import reference as torch_ops

from .conftest import exponential
from .valid_arguments import ATTENTION, LSTM_LAYER, VALID, call_with, run, weights

# The compiled ops only: the references take any stride.
STRIDES: list[tuple[str, str, Callable[[], Any]]] = [
    ("fused_sample", "logits", lambda: torch.randn(8, 2).t()),
    ("fused_sample", "noise", lambda: exponential(12, 2).t()),
    ("codebook_embedding_sum", "tables", lambda: [torch.randn(8, 37).t()]),
    ("codebook_embedding_sum", "positions", lambda: torch.randn(8, 7).t()),
    ("static_cache_attention", "query", lambda: torch.randn(2, 3, 8, 2).transpose(2, 3)),
    ("static_cache_attention", "key", lambda: torch.randn(2, 3, 8, 2).transpose(2, 3)),
    ("static_cache_attention", "value", lambda: torch.randn(2, 3, 8, 2).transpose(2, 3)),
    ("static_cache_attention", "key_cache", lambda: torch.randn(2, 2, 8, 11).transpose(2, 3)),
    ("static_cache_attention", "value_cache", lambda: torch.randn(2, 2, 8, 11).transpose(2, 3)),
    ("decode_step", "token_table", lambda: torch.randn(24, 37).t()),
    ("decode_step", "positions", lambda: torch.randn(24, 11).t()),
    ("decode_step", "weights", lambda: weights(2, torch.ones(24, 72).char().t())),
    ("decode_step", "weights", lambda: weights(15, torch.ones(2, 24).t())),
    ("decode_step", "weights", lambda: weights(0, torch.ones(48)[::2])),
    ("decode_step", "head", lambda: torch.ones(24, 19).char().t()),
    ("decode_step", "key_cache", lambda: torch.randn(2, 2, 2, 12, 11).transpose(3, 4)),
    ("decode_step", "value_cache", lambda: torch.randn(2, 2, 2, 12, 11).transpose(3, 4)),
    ("float32_linear", "input", lambda: torch.randn(70, 3).t()),
    ("float32_linear", "weight", lambda: torch.randn(70, 5).t()),
    ("float32_linear", "bias", lambda: torch.randn(10)[::2]),
    ("float32_linear", "residual", lambda: torch.randn(5, 3).t()),
    ("float32_conv", "input", lambda: torch.randn(2, 7, 9).transpose(1, 2)),
    ("float32_conv", "before", lambda: torch.randn(2, 7, 4).transpose(1, 2)),
    ("float32_conv", "bias", lambda: torch.randn(10)[::2]),
    ("float32_conv", "residual", lambda: torch.randn(2, 5, 9).transpose(1, 2)),
    ("float32_attention", "query", lambda: torch.randn(2, 3, 8, 2).transpose(2, 3)),
    ("float32_attention", "key", lambda: torch.randn(2, 2, 8, 9).transpose(2, 3)),
    ("float32_attention", "value", lambda: torch.randn(2, 2, 8, 9).transpose(2, 3)),
    ("int16_linear", "input", lambda: torch.randn(70, 3).t()),
    ("int16_linear", "weight", lambda: torch.ones(70, 5, dtype=torch.int8).t()),
    ("int16_linear", "scales", lambda: torch.rand(2, 5).t()),
    ("int8_linear", "input", lambda: torch.randn(70, 3).t()),
    ("int8_linear", "weight", lambda: torch.ones(70, 5, dtype=torch.int8).t()),
    ("int8_linear", "scales", lambda: torch.rand(2, 5).t()),
    ("int16_attention", "query", lambda: torch.randn(2, 3, 8, 2).transpose(2, 3)),
    ("int16_attention", "key", lambda: torch.randn(2, 2, 8, 9).half().transpose(2, 3)),
    ("int16_attention", "value", lambda: torch.randn(2, 2, 8, 9).half().transpose(2, 3)),
]


@pytest.mark.parametrize("case", STRIDES, ids=lambda c: f"{c[0]}-{c[1]}")
def test_refused_strides(case: tuple[str, str, Callable[[], Any]]) -> None:
    op, name, make = case
    with pytest.raises(ValueError, match=f"{op}: expected .*unit stride in its last dimension, got strides"):
        call_with(ops, op, name, make())


CONTIGUOUS: list[tuple[str, str, Callable[[], Any]]] = [
    ("float32_conv", "weight", lambda: torch.randn(3, 7, 6)[..., :5]),
    ("lstm_layer", "gates", lambda: torch.randn(2, 6, 128)[:, ::2]),
    ("lstm_layer", "weight", lambda: torch.randn(2, 32, 16, 4).transpose(2, 3)),
    ("lstm_layer", "hidden", lambda: torch.randn(2, 33)[:, :32]),
    ("lstm_layer", "cell", lambda: torch.randn(32, 2).t()),
]


@pytest.mark.parametrize("case", CONTIGUOUS, ids=lambda c: f"{c[0]}-{c[1]}")
def test_refused_gaps(case: tuple[str, str, Callable[[], Any]]) -> None:
    op, name, make = case
    with pytest.raises(ValueError, match=f"{op}: expected contiguous {name}, got strides"):
        call_with(ops, op, name, make())


@pytest.mark.parametrize("backend", [ops, torch_ops], ids=["native", "torch"])
def test_refused_states_that_are_one(backend: Any) -> None:
    arguments = {key: make() for key, make in LSTM_LAYER.items()}
    arguments["cell"] = arguments["hidden"]
    with pytest.raises(ValueError, match="lstm_layer: expected hidden and cell in separate memory, got overlapping"):
        run(backend, "lstm_layer", arguments)


@pytest.mark.parametrize("name", ["key_cache", "value_cache"])
def test_refused_overlaps(name: str) -> None:
    with pytest.raises(ValueError, match=f"expected {name} without elements that share memory, got strides"):
        call_with(ops, "static_cache_attention", name, ATTENTION[name]()[:1].expand(2, -1, -1, -1))


@pytest.mark.parametrize("backend", [ops, torch_ops], ids=["native", "torch"])
@pytest.mark.parametrize("op", ["static_cache_attention", "decode_step"])
@pytest.mark.parametrize("dense", [True, False])
def test_refused_caches_that_are_one(backend: Any, op: str, dense: bool) -> None:
    arguments = {key: make() for key, make in VALID[op].items()}
    cache = arguments["key_cache"].contiguous() if dense else arguments["key_cache"]
    arguments["key_cache"], arguments["value_cache"] = cache, cache.view(cache.shape)
    before = cache.clone()
    with pytest.raises(ValueError, match="expected key_cache and value_cache in separate memory, got overlapping"):
        run(backend, op, arguments)
    assert torch.equal(cache, before)
