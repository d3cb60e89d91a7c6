"""Chunks that are generated together: shared steps, what is begun ahead, errors, leaving, random numbers."""

from __future__ import annotations

import threading

import pytest
import torch
from support.bark_models import SMALL, texts
from support.long_text import LONG, SAMPLED, assert_same, begun_of, one_by_one
from support.parity import accelerated_copy
from support.tiny_text import CHUNKS, TEXT
from support.waiting import LIMIT_S

from bark_accel import SpeechRequest, long_form
from bark_accel.engine import scheduler
from bark_accel.longform.reader import chunk_seed


def test_a_function_draws_and_counts_as_it_does_one_by_one(fast, processor):
    """Whatever the batch size: its random numbers are the chunk's, and it sees one chunk after the other."""

    def some(row, ids):
        return torch.randint(0, SMALL.semantic_vocab, (12,)).tolist()

    options = {**SAMPLED, "semantic_prefix_allowed_tokens_fn": some}
    said = [long_form(fast, processor, TEXT, seed=7, batch_size=size, **options).waveform() for size in (1, 4)]
    assert torch.equal(*said)


@pytest.mark.parametrize("stream", [False, True])
def test_what_an_engine_lacks_is_generated_one_by_one(fast, processor, stream):
    options = {**SAMPLED, "semantic_max_time": 600.0, "fine_temperature": None}
    said = list(long_form(fast, processor, TEXT, seed=7, stream=stream, policy="exact", **options))
    for index, (audio, _) in enumerate(one_by_one(fast, processor, options=options)):
        assert torch.equal(torch.cat([chunk.audio for chunk in said if chunk.index == index]), audio)


@pytest.fixture
def steps(monkeypatch):
    """Rows of each shared step."""
    rows, take_together = [], scheduler.take_together

    def note(steps):
        rows.append(len(steps))
        return take_together(steps)

    monkeypatch.setattr(scheduler, "take_together", note)
    return rows


def test_chunks_share_their_steps(small_model, processor, steps):
    fast = accelerated_copy(small_model, weights="int8")
    list(long_form(fast, processor, TEXT, batch_size=3, **LONG))
    assert 2 <= max(steps) <= 3
    steps.clear()
    list(long_form(fast, processor, TEXT, batch_size=1, **LONG))
    assert max(steps, default=1) == 1


def test_who_listens_slowly_has_no_more_than_two_batches_ahead(fast, processor, monkeypatch):
    requests = begun_of(monkeypatch)
    chunks = iter(long_form(fast, processor, TEXT, batch_size=2, **SAMPLED))
    for index in range(len(CHUNKS)):
        next(chunks)
        assert len(requests) == min(index + 4, len(CHUNKS))
        for request in requests:
            request.result(LIMIT_S)
    chunks.close()


def test_an_error_waits_for_its_turn(fast, processor, monkeypatch):
    """Chunks before it are given out, those after it are not."""
    deliver = SpeechRequest.deliver

    def fail(self, chunk):
        if self.seed == chunk_seed(7, 3):
            raise KeyError("planted")
        deliver(self, chunk)

    monkeypatch.setattr(SpeechRequest, "deliver", fail)
    before, said = set(threading.enumerate()), []
    with pytest.raises(KeyError, match="planted"):
        for chunk in long_form(fast, processor, TEXT, seed=7, batch_size=9, **SAMPLED):
            said.append(chunk.index)
    assert said == [0, 1, 2]
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("left", ["closed", "interrupted"])
def test_who_leaves_ends_what_was_begun(fast, processor, left, monkeypatch):
    requests, before = begun_of(monkeypatch), set(threading.enumerate())
    chunks = iter(long_form(fast, processor, TEXT, **LONG))
    next(chunks)
    if left == "closed":
        chunks.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            chunks.throw(KeyboardInterrupt)
    assert len(requests) == 8 and all(request.done() for request in requests)
    assert set(threading.enumerate()) == before


def test_other_threads_may_draw_meanwhile(fast, processor):
    expected = list(long_form(fast, processor, TEXT, **SAMPLED))
    said = []
    for chunk in long_form(fast, processor, TEXT, **SAMPLED):
        torch.rand(5)
        fast.generate(**texts(SMALL, [3]), semantic_max_new_tokens=3)
        said.append(chunk)
    assert_same(said, expected)


@pytest.fixture
def global_seeds(monkeypatch):
    """Calls that would reach the generators of every device."""
    calls = []
    for owner, name in (
        (torch, "manual_seed"),
        (torch.random, "manual_seed"),
        (torch.cuda, "manual_seed_all"),
        (torch.mps, "manual_seed"),
        (torch.xpu, "manual_seed_all"),
    ):
        monkeypatch.setattr(owner, name, lambda seed, owner=owner: calls.append(owner))
    return calls


@pytest.mark.parametrize("stream", [False, True])
def test_other_devices_generators_are_left_alone(fast, processor, global_seeds, stream):
    assert len(list(long_form(fast, processor, "One.", stream=stream, **SAMPLED))) > 0
    assert global_seeds == []
