"""Masks that Transformers puts between Bark's own rules."""

from __future__ import annotations

import copy

import torch
from support.bark_models import SMALL, build, texts

from bark_accel import AudioStreamer, BarkEngine, accelerate_bark

MASKS = {"semantic_suppress_tokens": [0], "semantic_begin_suppress_tokens": [1]}


def test_a_stream_has_both_masks():
    stock, inputs = build(SMALL), texts(SMALL, [5])
    fast = accelerate_bark(copy.deepcopy(stock))
    torch.manual_seed(0)
    expected = stock.generate(**inputs, **MASKS)
    torch.manual_seed(0)
    streamed = fast.generate(**inputs, **MASKS, streamer=AudioStreamer(fast, policy="exact"))
    torch.testing.assert_close(streamed, expected, rtol=0, atol=1e-4)


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
