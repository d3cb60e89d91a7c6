"""Long texts with `stream=True`: pieces in order, the next chunk in time, an early end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.bark_models import SMALL, texts
from support.long_text import LONG, assert_same, begun_of, one_by_one
from support.tiny_text import CHUNKS, TEXT

from bark_accel import BarkEngine, long_form


def test_the_next_chunk_of_a_stream_begins_with_the_first_sound(fast, processor, monkeypatch):
    requests, ready = begun_of(monkeypatch), []
    submit = BarkEngine.submit
    monkeypatch.setattr(
        BarkEngine,
        "submit",
        lambda self, **arguments: ready.append([r.seconds_ready for r in requests]) or submit(self, **arguments),
    )
    pieces = iter(long_form(fast, processor, TEXT, stream=True, policy="preview", **LONG))
    next(pieces)
    assert len(requests) == 2 and requests[1]._after is requests[0], "before the first sound is played"
    assert ready[0] == [] and ready[1][0] > 0, "not before it is there"
    pieces.close()
    assert all(request.done() for request in requests)


@pytest.mark.parametrize("policy", ["exact", "low_latency", "preview"])
def test_a_stream_gives_pieces_in_order(fast, processor, policy):
    options = {"seed": 7, "stream": True, "policy": policy, **LONG}
    pieces = list(long_form(fast, processor, TEXT, **options))
    assert [piece.index for piece in pieces] == sorted(piece.index for piece in pieces)
    ends = [piece for piece in pieces if piece.final]
    assert [end.text for end in ends] == CHUNKS and len(pieces) >= 2 * len(CHUNKS)
    assert all(piece.preset is None and piece.pause_samples == 0 for piece in pieces if not piece.final)
    joined = [torch.cat([p.audio for p in pieces if p.index == index]) for index in range(len(CHUNKS))]
    for audio, end, (whole, made) in zip(joined, ends, one_by_one(fast, processor, options=LONG), strict=True):
        assert len(audio) == len(whole) and (end.preset is None) == (policy == "preview")
        if policy == "exact":
            torch.testing.assert_close(audio, whole, rtol=0, atol=1e-6)
            np.testing.assert_array_equal(end.preset["fine_prompt"], made["fine_prompt"])
    assert_same(pieces, long_form(fast, processor, TEXT, **options))


def test_a_stream_that_is_left_stops(fast, processor):
    state = torch.get_rng_state()
    pieces = iter(long_form(fast, processor, TEXT, stream=True, policy="preview", **LONG))
    next(pieces)
    pieces.close()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    assert fast.generate(**texts(SMALL, [3]), semantic_max_new_tokens=3).shape[1] > 0


def test_a_stream_needs_an_accelerated_model(small_model, processor):
    with pytest.raises(ValueError, match="expected a BarkModel made faster with accelerate_bark"):
        long_form(small_model, processor, TEXT, stream=True)
