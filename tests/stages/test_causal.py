"""The causal transformer's two ways: a step for any number of rows, matrix products for prompts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from support.bark_models import SMALL, build
from torch import Tensor

from bark_accel.hf.transformer import transformer_spec, transformer_weights
from bark_accel.ops.backend import get_ops
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCache, KVCachePool
from bark_accel.transformer.precision import convert

CPU = torch.device("cpu")
VOCABULARY = slice(0, SMALL.semantic_outputs)


@pytest.fixture(scope="module", params=("same", "float16", "int8", "w8a8"))
def model(request: pytest.FixtureRequest) -> CausalModel:
    module = build(SMALL).semantic
    weights = convert(transformer_weights("semantic", module), request.param)
    return CausalModel(weights, transformer_spec(module), get_ops("native", CPU))


@contextmanager
def filled(model: CausalModel, prompts: Tensor) -> Iterator[KVCache]:
    """A cache that holds a prompt [T] in each row; every row's comes from a prompt alone."""
    with KVCachePool().borrow(model.spec, len(prompts), model.weights.cache_dtype, CPU) as cache:
        for row in range(len(prompts)):
            one = KVCache(cache.keys[:, row : row + 1], cache.values[:, row : row + 1], torch.zeros(1).long())
            model.next_logits(prompts[row : row + 1], one, VOCABULARY)
        cache.truncate(prompts.shape[1])
        yield cache


@torch.no_grad()
@pytest.mark.parametrize("rows", [16, 17, 24, 33])
def test_a_row_of_a_wide_step_has_the_bits_it_has_alone(model: CausalModel, rows: int) -> None:
    prompts, ids = torch.randint(0, SMALL.semantic_vocab, (rows, 21)).split((20, 1), dim=1)
    with filled(model, prompts) as cache:
        wide = model.next_logits(ids, cache, VOCABULARY)
        assert cache.position == 21
    for row in (0, 15, rows - 1):
        one = slice(row, row + 1)
        with filled(model, prompts[one]) as cache:
            assert torch.equal(model.next_logits(ids[one], cache, VOCABULARY)[0], wide[row]), f"row {row}"
