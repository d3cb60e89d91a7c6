from __future__ import annotations

import pytest
import torch
from support.bark_models import SMALL, build
from support.batches import generate_alone
from support.parity import (
    accelerated_copy,
)


@pytest.fixture(scope="module")
def stock():
    """Says the end of speech where it would have said token 49: after 11 to 90 tokens, in each row elsewhere."""
    model = build(SMALL, seed=7)
    head, end = model.semantic.lm_head.weight, SMALL.semantic_vocab
    with torch.no_grad():
        head[[49, end]] = head[[end, 49]]
    return model


@pytest.fixture(scope="module")
def endless():
    """Never ends an utterance itself."""
    model = build(SMALL, seed=4, bias=True)
    head, norm = model.semantic.lm_head.weight, model.semantic.layernorm_final
    with torch.no_grad():
        norm.weight[0], norm.bias[0] = 0, 1
        head[:, 0] = 0
        head[SMALL.semantic_vocab, 0] = -50
    return model


@pytest.fixture(scope="module")
def fast(stock):
    return accelerated_copy(stock)


@pytest.fixture(scope="module")
def fixed(stock):
    return accelerated_copy(stock, fix_stock_bugs=["batch_tails"])


@pytest.fixture(scope="module")
def alone(stock):
    """Greedy outputs of stock for one row of INPUTS: (tokens of each stage, waveform [S])."""
    kept = {}

    def generate(row, history):
        key = row, id(history)
        if key not in kept:
            kept[key] = generate_alone(stock, row, history)
        return kept[key]

    return generate
