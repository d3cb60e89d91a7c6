"""A batch's tokens for a seed: stock's, or the same again."""

from __future__ import annotations

import torch
from support.bark_models import SMALL, texts
from support.batches import INPUTS, SAMPLED, SHARED, VOICES
from support.parity import (
    TOKEN_STAGES,
    accelerated_copy,
    assert_equal_to_stock,
    assert_same_run,
    assert_same_tokens,
    assert_stock_gives,
    run,
)


def test_tokens_of_a_seed_with_batch_tails(stock, fixed):
    """Noise is drawn for ended rows too: semantic and coarse tokens are stock's, each row up to its end."""
    got, _, _ = run(fixed, 5, **INPUTS, **SAMPLED)
    spoken = got["coarse"] != 0
    assert not spoken.all() and spoken.any()

    def check(expected):
        assert_same_tokens("semantic", expected[0]["semantic"], got["semantic"])
        assert torch.equal(got["coarse"][spoken], expected[0]["coarse"][spoken])

    assert_stock_gives(check, stock, 5, **INPUTS, **SAMPLED)


def test_batch_tails_change_nothing_where_rows_are_equally_long(endless):
    """Nor for one row, whatever its voice."""
    fixed = accelerated_copy(endless, fix_stock_bugs=["batch_tails"])
    for inputs in (texts(SMALL, [6]), texts(SMALL, [4, 9])):
        for history in (None, SHARED):
            options = {**SAMPLED, "semantic_max_new_tokens": 80, "history_prompt": history}
            assert_equal_to_stock(endless, fixed, 3, **inputs, **options)


def test_equal_voices_in_a_list_are_one_for_all(endless):
    fast = accelerated_copy(endless)
    options = {**texts(SMALL, [4, 9]), **SAMPLED, "semantic_max_new_tokens": 40}
    got = run(fast, 3, **options, history_prompt=[SHARED, SHARED])
    assert_stock_gives(lambda expected: assert_same_run(expected, got), endless, 3, **options, history_prompt=SHARED)


def test_a_seed_gives_the_same_again_with_and_without_drafts(stock, fast):
    expected, _, _ = run(fast, 4, **INPUTS, **SAMPLED, history_prompt=VOICES)
    for model in (fast, accelerated_copy(stock, speculate=False), accelerated_copy(stock, backend="torch")):
        got, _, _ = run(model, 4, **INPUTS, **SAMPLED, history_prompt=VOICES)
        for stage in TOKEN_STAGES:
            assert_same_tokens(stage, expected[stage], got[stage])
    assert not torch.equal(run(fast, 5, **INPUTS, **SAMPLED, history_prompt=VOICES)[0]["coarse"], expected["coarse"])
