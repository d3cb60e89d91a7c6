"""Masks that Transformers puts between Bark's own rules."""

from __future__ import annotations

import copy

import pytest
import torch
from support.bark_models import SMALL, build, texts
from support.stock_limits import skip_where_stock_fails

from bark_accel import AudioStreamer, BarkEngine, accelerate_bark, acceleration_report

MASKS = {"semantic_suppress_tokens": [0], "semantic_begin_suppress_tokens": [1]}


@pytest.mark.parametrize("others", [{}, {"semantic_no_repeat_ngram_size": 3}], ids=["fused", "called"])
def test_both_masks_whoever_chooses(others):
    skip_where_stock_fails("two masks")
    stock, inputs = build(SMALL), texts(SMALL, [5])
    fast = accelerate_bark(copy.deepcopy(stock))
    torch.manual_seed(0)
    expected = stock.generate(**inputs, **MASKS, **others)
    torch.manual_seed(0)
    whole = fast.generate(**inputs, **MASKS, **others)
    torch.manual_seed(0)
    streamed = fast.generate(**inputs, **MASKS, **others, streamer=AudioStreamer(fast, policy="exact"))
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(streamed, expected, rtol=0, atol=1e-4)
    assert bool(acceleration_report(fast).token_choices) == bool(others)


def test_a_request_is_what_it_was_when_it_was_submitted():
    fast, inputs = accelerate_bark(build(SMALL)), texts(SMALL, [5])
    torch.manual_seed(3)
    expected = fast.generate(**inputs)[0]
    with BarkEngine(fast, max_rows=1) as engine:
        engine.submit(**texts(SMALL, [4]), seed=1)
        request = engine.submit(**inputs, seed=3)
        inputs["input_ids"].zero_()
        request.result().zero_()
        assert torch.equal(request.result(), expected)
