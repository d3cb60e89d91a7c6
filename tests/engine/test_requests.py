"""Requests of an engine from start to end: from threads, from asyncio, many at once."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.bark_models import SMALL, build, preset
from support.engine_requests import INPUTS, LONG, SHORT, Asked, assert_as_alone, finished, is_well
from support.parity import accelerated_copy
from support.waiting import LIMIT_S

from bark_accel import (
    BarkEngine,
    SpeechRequest,
    free_memory,
)
from bark_accel.stages.fine import FineStage


def test_a_request_from_start_to_end(fast, engine):
    with engine.submit(**LONG, seed=3, policy="preview", first_chunk_frames=10) as request:
        chunks = list(request)
        assert request.result(LIMIT_S).equal(torch.cat(chunks)) and len(chunks) > 5
        assert all(chunk.dtype == torch.float32 and chunk.ndim == 1 for chunk in chunks)
        assert (request.status, request.done(), request.seed) == ("done", True, 3)
        assert request.seconds_ready == len(request.result()) / request.sampling_rate
    assert request.result().equal(torch.cat(chunks)), "leaving the block cancels nothing that is done"


def test_a_seed_of_its_own(fast, engine):
    first, second = (finished(engine.submit(**SHORT)) for _ in range(2))
    assert first.seed != second.seed
    assert_as_alone(fast, Asked(SHORT, seed=first.seed), first)


def test_a_model_that_is_not_accelerated_is():
    model = build(SMALL)
    with BarkEngine(model) as engine:
        assert_as_alone(model, Asked(SHORT, seed=1), finished(engine.submit(**SHORT, seed=1)))


def test_torchs_own_generator_is_left_alone(engine):
    before = torch.get_rng_state()
    for policy in (None, "exact", "low_latency"):
        finished(engine.submit(**SHORT, seed=5, policy=policy))
    assert torch.equal(torch.get_rng_state(), before)


def test_nobody_listens(engine):
    """A listener who never reads holds up nobody, and the engine keeps nothing for it."""
    request = finished(engine.submit(**LONG, policy="preview", first_chunk_frames=1, max_chunk_frames=1))
    assert len(list(request)) > 100
    finished(engine.submit(**SHORT))
    assert engine.requests == 0 and not engine._worker._unfinished


def test_many_requests_through_few_rows(fast, engine):
    lengths = [1, 3, 8, 20]
    asked = [Asked({**INPUTS, "semantic_max_new_tokens": lengths[i % 4]}, seed=i % 3) for i in range(200)]
    requests = [engine.submit(**one.inputs, seed=one.seed) for one in asked]
    for i, (one, request) in enumerate(zip(asked, requests, strict=True)):
        if i < 12:
            assert_as_alone(fast, one, finished(request))
        assert torch.equal(request.result(LIMIT_S), requests[i % 12].result())


def test_submitted_from_many_threads(fast, engine):
    def say(seed: int) -> SpeechRequest:
        return finished(engine.submit(**SHORT, seed=seed % 5))

    with ThreadPoolExecutor(8) as threads:
        requests = list(threads.map(say, range(40)))
    for seed, request in enumerate(requests):
        assert torch.equal(request.result(), requests[seed % 5].result())
    for seed in range(5):
        assert_as_alone(fast, Asked(SHORT, seed=seed), requests[seed])


def test_asyncio(fast, engine, hold):
    async def listen(seed: int) -> torch.Tensor:
        request = engine.submit(**LONG, seed=seed, policy="low_latency", first_chunk_frames=10)
        chunks = [chunk async for chunk in request]
        assert torch.equal(await request, torch.cat(chunks))
        return chunks

    async def impatient() -> None:
        with hold(), pytest.raises(asyncio.TimeoutError):
            request = engine.submit(**LONG)
            await asyncio.wait_for(request, 0.001)
        assert len(await request) > 0, "who gives up waiting cancels nothing"

    async def everybody():
        return (await asyncio.gather(*(listen(seed) for seed in range(6)), impatient()))[:6]

    for seed, chunks in enumerate(asyncio.run(everybody())):
        asked = Asked(LONG, seed, "low_latency", {"first_chunk_frames": 10})
        torch.manual_seed(seed)
        request = finished(engine.submit(**LONG, seed=seed, policy="low_latency", first_chunk_frames=10))
        assert_as_alone(fast, asked, request)
        assert torch.equal(request.result(), torch.cat(chunks))


def test_everybody_who_waits_has_audio_of_his_own(engine):
    async def changed() -> bool:
        request = engine.submit(**SHORT)
        first, second = await request, request.result()
        expected = first.clone()
        first.zero_(), second.zero_()
        return expected.any() and torch.equal(await request, expected) and torch.equal(request.result(), expected)

    assert asyncio.run(changed())


def test_the_model_generates_beside_it_and_its_memory_can_be_freed():
    model = accelerated_copy(build(SMALL), weights="int8")
    with BarkEngine(model) as engine:
        requests = [engine.submit(**LONG, seed=1) for _ in range(4)]
        torch.manual_seed(1)
        audio = model.generate(**LONG)[0]
        free_memory(model)
        is_well(model, engine)
    assert all(torch.equal(request.result(), audio) for request in requests)


def test_one_voice_in_a_list(fast, engine):
    voice = preset(SMALL, 20, 30)
    one, listed = (engine.submit(**SHORT, history_prompt=h, seed=1) for h in (voice, [voice]))
    assert torch.equal(one.result(LIMIT_S), listed.result(LIMIT_S))


def test_coarse_tokens_are_joined_once_a_chunk(fast, engine, monkeypatch):
    """Not once a frame, also where windows begin before all frames are there."""
    push, pushed = FineStage.push, []

    def noted(self, state, codes):
        pushed.append(codes.shape[1])
        push(self, state, codes)

    monkeypatch.setattr(FineStage, "push", noted)
    request = engine.submit(**LONG, seed=1, policy="exact")
    chunks = len(list(request))
    monkeypatch.undo()
    assert chunks > 1 and len(pushed) <= 6 * chunks < sum(pushed)
    assert_as_alone(fast, Asked(LONG, seed=1, policy="exact"), request)
