"""Batches are stock's by default, and how its rows differ from the texts alone."""

from __future__ import annotations

import pytest
import torch
from support.bark_models import SMALL, texts
from support.batches import INPUTS, SAMPLED, SHARED
from support.parity import (
    accelerated_copy,
    assert_equal_to_stock,
    assert_same_tokens,
    run,
)


@pytest.mark.parametrize("history", [None, SHARED], ids=["no voice", "a voice"])
def test_stocks_rows_differ_from_alone_in_the_fine_stage_only(stock, alone, history):
    got, _, _ = run(stock, 0, **INPUTS, history_prompt=history)
    lengths, different = [], []
    for row in range(4):
        tokens, _ = alone(row, history)
        for stage in ("semantic", "coarse"):
            own = tokens[stage][0]
            assert_same_tokens(stage, own, got[stage][row, : len(own)])
        frames = tokens["fine"].shape[-1]
        lengths.append(frames)
        different.append(not torch.equal(tokens["fine"][0], got["fine"][row, :, :frames]))
    assert len(set(lengths)) > 2
    assert different == [frames < max(lengths) for frames in lengths]


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("settings", [{}, {"backend": "torch"}], ids=str)
def test_by_default_batches_are_stocks(stock, settings, options):
    quick = accelerated_copy(stock, **settings)
    for history in (None, SHARED):
        for seed in (3, 6):
            assert_equal_to_stock(
                stock, quick, seed, **INPUTS, history_prompt=history, return_output_lengths=True, **options
            )


def test_by_default_rows_of_a_wide_batch_are_stocks(stock, fast):
    """More rows than share one reading of the weights, until enough of them have ended."""
    lengths = [1 + i % 14 for i in range(19)]
    tokens = assert_equal_to_stock(stock, fast, **texts(SMALL, lengths), **SAMPLED, semantic_max_new_tokens=60)
    ended = (tokens["semantic"] == SMALL.semantic_vocab).any(1).sum()
    assert 3 < ended < 19
