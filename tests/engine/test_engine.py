"""Requests that come and go, fail, are cancelled or late; engines that are full or closed."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.bark_models import SMALL, build, preset, texts
from support.engine_requests import Asked, assert_as_alone
from support.parity import accelerated_copy
from transformers import LogitsProcessor, MaxTimeCriteria, StoppingCriteria

from bark_accel import (
    AudioStreamer,
    BarkEngine,
    DeadlineExceeded,
    EngineBusy,
    EngineClosed,
    RequestCancelled,
    SpeechRequest,
    accelerate_bark,
    free_memory,
    restore_bark,
)
from bark_accel.engine import scheduler as scheduling
from bark_accel.engine.engine import make_row
from bark_accel.engine.errors import NotShared
from bark_accel.engine.scheduler import Scheduler
from bark_accel.engine.slots import Slots
from bark_accel.patches.engine import ModelSource
from bark_accel.stages import fine

INPUTS = texts(SMALL, [6])
SHORT = {**INPUTS, "semantic_max_new_tokens": 12}
LONG = {**INPUTS, "semantic_max_new_tokens": 80, "semantic_min_new_tokens": 80}


@pytest.fixture(scope="module")
def fast():
    return accelerated_copy(build(SMALL), strict=False)


@pytest.fixture(autouse=True)
def leaves_no_thread():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def wait_for(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def engine(fast):
    with BarkEngine(fast, max_rows=3, max_queued=250) as engine:
        yield engine


def is_well(model, engine) -> None:
    """It still takes a request, and gives it what it would have alone."""
    assert_as_alone(model, Asked(SHORT, seed=7), finished(engine.submit(**SHORT, seed=7)))


def finished(request: SpeechRequest) -> SpeechRequest:
    request.result(60)
    return request


def test_a_request_from_start_to_end(fast, engine):
    with engine.submit(**LONG, seed=3, policy="preview", first_chunk_frames=10) as request:
        chunks = list(request)
        assert request.result(60).equal(torch.cat(chunks)) and len(chunks) > 5
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


class Halve(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores / 2


BAD = {
    "no ids": ({}, TypeError, "input_ids"),
    "two rows": (texts(SMALL, [3, 4]), ValueError, "one row"),
    "empty text": (texts(SMALL, [0]), ValueError, "empty text"),
    "voice": ({**SHORT, "history_prompt": {"semantic_prompt": [1]}}, (TypeError, ValueError), "history_prompt"),
    "policy": ({**SHORT, "policy": "fast"}, ValueError, "policy"),
    "chunk": ({**SHORT, "policy": "preview", "first_chunk_frames": 0}, ValueError, "first_chunk_frames"),
    "seed": ({**SHORT, "seed": 1.5}, TypeError, "seed"),
    "large seed": ({**SHORT, "seed": 2**64}, ValueError, "seed: expected an int from"),
    "deadline": ({**SHORT, "deadline_s": 0}, ValueError, "deadline_s"),
    "a flag as deadline": ({**SHORT, "deadline_s": True}, ValueError, "deadline_s"),
    "after": ({**SHORT, "after": "the first"}, TypeError, "after: expected None or a SpeechRequest"),
    "streamer": ({**SHORT, "streamer": object()}, TypeError, "streamer"),
    "lengths": ({**SHORT, "return_output_lengths": True}, TypeError, "return_output_lengths"),
    "temperature": ({**SHORT, "fine_temperature": 0.0}, ValueError, "temperature"),
    "processor": ({**SHORT, "semantic_logits_processor": [Halve()]}, (TypeError, ValueError), "logits_processor"),
    "function": (
        {**SHORT, "semantic_prefix_allowed_tokens_fn": lambda row, ids: [1, 2]},
        ValueError,
        "expected no function of the caller's",
    ),
    "criterion": ({**SHORT, "semantic_stopping_criteria": [MaxTimeCriteria(9)]}, ValueError, "MaxTimeCriteria"),
    "beams": ({**SHORT, "semantic_num_beams": 2}, ValueError, "beam"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_arguments_among_good_ones(fast, engine, bad):
    good = engine.submit(**LONG, seed=1)
    arguments, error, message = BAD[bad]
    with pytest.raises(error, match=message):
        engine.submit(**arguments)
    also_good = engine.submit(**SHORT, seed=2)
    assert engine.requests <= 2
    assert_as_alone(fast, Asked(LONG, seed=1), finished(good))
    assert_as_alone(fast, Asked(SHORT, seed=2), finished(also_good))


def test_what_fails_while_it_generates_fails_alone(fast, engine):
    """More tokens than there are positions: stock fails there, too."""
    good = engine.submit(**LONG, seed=1)
    endless = {**INPUTS, "semantic_min_new_tokens": 500, "semantic_max_new_tokens": 600}
    bad = engine.submit(**endless, policy="preview")
    with pytest.raises(IndexError, match="positions"):
        bad.result(60)
    with pytest.raises(IndexError, match="positions"):
        list(bad)
    assert_as_alone(fast, Asked(LONG, seed=1), finished(good))
    is_well(fast, engine)


def test_the_thread_ends_with_all_its_requests(fast, monkeypatch):
    """Whatever a bug raises: nobody waits for ever, and nobody is let in."""

    def fails(self):
        raise SystemExit(3)

    monkeypatch.setattr(Scheduler, "turn", fails)
    engine = BarkEngine(fast)
    with pytest.raises(SystemExit):
        engine.submit(**SHORT).result(60)
    with pytest.raises(EngineClosed):
        engine.submit(**SHORT)


def test_objects_that_cannot_be_copied_are_refused_by_what_they_do(fast, engine):
    class Holds(StoppingCriteria):
        def __init__(self):
            self.lock = threading.Lock()

        def __call__(self, ids, scores, **kwargs):
            return torch.zeros(ids.shape[0], dtype=torch.bool)

    with pytest.raises(NotShared, match="Holds"):
        engine.submit(**SHORT, semantic_stopping_criteria=[Holds()])


@pytest.mark.parametrize("stage", ["queued", "semantic", "coarse", "fine"])
@torch.no_grad()
def test_cancelled_in_every_stage(fast, stage, monkeypatch):
    source = ModelSource(fast)
    slots = Slots(source.models, 2)
    scheduler = Scheduler(source.models, slots)
    rows = [make_row(source, LONG, seed=seed) for seed in range(4)]
    passes = []

    def cancel_in_the_second_pass(*args):
        passes.append(args)
        if len(passes) == 2 and stage == "fine":
            rows[0].request.cancel()
        return forward(*args)

    forward = fine.bidirectional_forward
    monkeypatch.setattr(fine, "bidirectional_forward", cancel_in_the_second_pass)
    for row in rows:
        scheduler.add(row)
    while scheduler.busy:
        if rows[0].request.status == stage != "fine":
            rows[0].request.cancel()
        scheduler.turn()
    with pytest.raises(RequestCancelled, match=stage):
        rows[0].request.result(0)
    assert list(rows[0].request) == []
    assert slots.take() and slots.take() and not slots.take(), "every slot was given back, once"
    monkeypatch.undo()
    for seed, row in list(enumerate(rows))[1:]:
        assert_as_alone(fast, Asked(LONG, seed=seed), row.request)
    assert len(passes) == 2 * 6 * 3 + (2 if stage == "fine" else 0), (
        "two windows of each of the others, and what was begun"
    )


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
        assert torch.equal(request.result(60), requests[i % 12].result())


def test_submitted_from_many_threads(fast, engine):
    def say(seed: int) -> SpeechRequest:
        return finished(engine.submit(**SHORT, seed=seed % 5))

    with ThreadPoolExecutor(8) as threads:
        requests = list(threads.map(say, range(40)))
    for seed, request in enumerate(requests):
        assert torch.equal(request.result(), requests[seed % 5].result())
    for seed in range(5):
        assert_as_alone(fast, Asked(SHORT, seed=seed), requests[seed])


def test_asyncio(fast, engine):
    async def listen(seed: int) -> torch.Tensor:
        request = engine.submit(**LONG, seed=seed, policy="low_latency", first_chunk_frames=10)
        chunks = [chunk async for chunk in request]
        assert torch.equal(await request, torch.cat(chunks))
        return chunks

    async def impatient() -> None:
        request = engine.submit(**LONG)
        with pytest.raises(asyncio.TimeoutError):
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


def test_full(fast):
    with BarkEngine(fast, max_rows=1, max_queued=2) as engine:
        requests = [engine.submit(**LONG) for _ in range(3)]
        with pytest.raises(EngineBusy, match=r"1 running .* 2 waiting"):
            engine.submit(**SHORT)
        requests[1].cancel()
        finished(engine.submit(**SHORT))


def test_late(fast, engine):
    request = engine.submit(**LONG, deadline_s=1e-6)
    with pytest.raises(DeadlineExceeded, match="1e-06 s"):
        request.result(60)
    with pytest.raises(DeadlineExceeded):
        next(iter(request))
    with pytest.raises(TimeoutError, match="within 1e-06 s, got a request that is"):
        engine.submit(**LONG).result(1e-6)
    is_well(fast, engine)


@pytest.mark.parametrize("drain", [False, True])
def test_closed_in_the_middle(fast, drain):
    engine = BarkEngine(fast, max_rows=2)
    requests = [engine.submit(**LONG, seed=seed) for seed in range(4)]
    engine.close(drain=drain)
    assert all(request.done() for request in requests)
    for seed, request in enumerate(requests):
        if drain:
            assert_as_alone(fast, Asked(LONG, seed=seed), request)
        else:
            with pytest.raises(EngineClosed, match="closed before"):
                request.result(0)
    with pytest.raises(EngineClosed, match="open"):
        engine.submit(**SHORT)
    engine.close()


def test_a_bug_in_the_loop_leaves_nobody_waiting(fast, monkeypatch):
    monkeypatch.setattr(Scheduler, "turn", lambda self: 1 / 0)
    monkeypatch.setattr("bark_accel.engine.worker.logger.disabled", True)
    with BarkEngine(fast) as engine:
        request = engine.submit(**LONG)
        with pytest.raises(ZeroDivisionError):
            request.result(60)
        with pytest.raises(EngineClosed):
            engine.submit(**SHORT)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_block_that_raises_cancels(fast, error):
    with pytest.raises(error), BarkEngine(fast) as engine:
        request = engine.submit(**LONG)
        raise error
    with pytest.raises(EngineClosed):
        request.result(0)


def test_whoever_is_interrupted_while_it_drains_cancels_the_rest(fast, monkeypatch):
    with pytest.raises(KeyboardInterrupt), BarkEngine(fast, max_rows=1) as engine:
        requests = [engine.submit(**LONG) for _ in range(4)]
        thread = engine._worker._thread
        join, calls = thread.join, []

        def interrupted():
            calls.append(None)
            if len(calls) == 1:
                raise KeyboardInterrupt
            join()

        monkeypatch.setattr(thread, "join", interrupted)
    with pytest.raises(EngineClosed):
        requests[-1].result(0)


def test_closing_waits_for_one_pass_of_the_fine_stage(fast, monkeypatch):
    engine = BarkEngine(fast)
    passes, begun, ended = [], threading.Event(), threading.Event()

    def wait_in_the_second_pass(*args):
        passes.append(None)
        if len(passes) == 2:
            begun.set()
            assert ended.wait(60)
        return forward(*args)

    forward = fine.bidirectional_forward
    monkeypatch.setattr(fine, "bidirectional_forward", wait_in_the_second_pass)
    request = engine.submit(**LONG)
    assert begun.wait(60)
    closing = threading.Thread(target=engine.close)
    closing.start()
    wait_for(request.done)
    ended.set()
    closing.join(60)
    assert not closing.is_alive() and len(passes) == 2


@torch.no_grad()
def test_others_go_on_between_the_passes_of_a_window(fast, monkeypatch):
    source = ModelSource(fast)
    scheduler = Scheduler(source.models, Slots(source.models, 2))
    rows = [make_row(source, SHORT, seed=1), make_row(source, LONG, seed=2)]
    passes = []
    forward = fine.bidirectional_forward
    monkeypatch.setattr(fine, "bidirectional_forward", lambda *args: passes.append(None) or forward(*args))
    for row in rows:
        scheduler.add(row)
    turns = 0
    while scheduler.busy:
        before, stepped, short_is_done = len(passes), rows[1].step, rows[0].request.done()
        scheduler.turn()
        assert len(passes) - before <= 1
        if not short_is_done and len(passes) > before:
            turns += 1
            assert rows[1].step is not stepped
    assert turns == 6, "a window of the short one, while the long one has tokens to come"


@torch.no_grad()
@pytest.mark.parametrize("policy", [None, "preview"])
def test_who_runs_dry_comes_before_the_fine_stage_of_others(fast, policy, monkeypatch):
    """A stream that nothing was heard of yet; a waveform that is wanted whole has no such haste."""
    source = ModelSource(fast)
    scheduler = Scheduler(source.models, Slots(source.models, 2))
    first = make_row(source, SHORT, seed=1)
    first.request.waits_from += 1
    scheduler.add(first)
    while first.request.status != "fine":
        scheduler.turn()
    second = make_row(source, LONG, seed=2, policy=policy)
    scheduler.add(second)
    scheduler.turn()
    passes = []
    forward = fine.bidirectional_forward
    monkeypatch.setattr(fine, "bidirectional_forward", lambda *args: passes.append(None) or forward(*args))
    for _ in range(3):
        scheduler.turn()
    assert len(passes) == (3 if policy is None else 0)
    while scheduler.busy:
        scheduler.turn()
    assert_as_alone(fast, Asked(SHORT, seed=1), first.request)


@torch.no_grad()
@pytest.mark.parametrize("chained", [False, True])
def test_what_is_heard_later_does_not_hold_up_what_is_heard_before(fast, chained):
    """Sentence after sentence, as streams: the second has its tokens while the first is not all there."""
    source = ModelSource(fast)
    scheduler = Scheduler(source.models, Slots(source.models, 1))
    lengths = {"policy": "low_latency", "first_chunk_frames": 40}
    first = make_row(source, LONG, seed=1, **lengths)
    second = make_row(source, LONG, seed=2, after=first.request if chained else None, **lengths)
    for row in (first, second):
        scheduler.add(row)
    while not first.request.done() and second.request.seconds_ready == 0:
        scheduler.turn()
    assert first.request.done() == chained, "the second has heard nothing yet, and would be the more urgent one"
    while scheduler.busy:
        scheduler.turn()
    for seed, row in ((1, first), (2, second)):
        assert_as_alone(fast, Asked(LONG, seed, "low_latency", {"first_chunk_frames": 40}), row.request)


def test_when_requests_in_line_are_due(fast):
    source = ModelSource(fast)
    line = [make_row(source, SHORT, seed=0, policy="preview").request]
    for seed in range(1, 2000):
        line.append(SpeechRequest(AudioStreamer(fast), seed, None, whole=False, after=line[-1]))
    assert line[-1].due - line[0].due == pytest.approx(1999 * 30, abs=1), "each long after the one before"
    second = torch.zeros(1, line[0].sampling_rate)
    for request in line[:2]:
        request.deliver(second)
        request.deliver(second)
        request.finish(None)
    assert line[2].due - line[0].due == pytest.approx(2), "once those before are done, when they have been heard"
    assert line[2]._after is None, "which are kept no longer"
    line[2].deliver(second)
    assert line[2].due - line[0].due == pytest.approx(3)


def test_when_a_request_behind_another_processs_is_due(fast):
    source = ModelSource(fast)
    first, later = (make_row(source, SHORT, seed=seed, policy="preview").request for seed in range(2))
    later.is_heard_in(4.0)
    assert later.due - first.due == pytest.approx(4, abs=0.5)
    later.deliver(torch.zeros(1, later.sampling_rate))
    assert later.due - first.due == pytest.approx(5, abs=0.5), "what is there is heard then, not now"


@torch.no_grad()
@pytest.mark.parametrize("dry", [False, True])
def test_prompts_have_a_share_of_each_turn(fast, dry, monkeypatch):
    monkeypatch.setattr(scheduling, "_PROMPT_TOKENS", 60)
    monkeypatch.setattr(scheduling, "_PROMPT_TOKENS_BESIDE", 6)
    source = ModelSource(fast)
    scheduler = Scheduler(source.models, Slots(source.models, 6))
    stream = make_row(source, LONG, seed=1, policy="preview" if dry else None, first_chunk_frames=100)
    scheduler.add(stream)
    scheduler.turn()
    rows = [make_row(source, SHORT, seed=seed) for seed in range(5)]
    for row in rows:
        scheduler.add(row)
    turns = 0
    while any(row.step is None or not row.step.feed.is_step for row in rows):
        scheduler.turn()
        turns += 1
    assert turns > 5 if dry else turns <= 5
    while scheduler.busy:
        scheduler.turn()
    for seed, row in enumerate(rows):
        assert_as_alone(fast, Asked(SHORT, seed=seed), row.request)


ENDS = {
    "done": ({}, lambda request: request.result(60)),
    "cancelled": ({}, lambda request: wait_for(lambda: request.status == "coarse") or request.cancel()),
    "late": ({"deadline_s": 0.05}, lambda request: wait_for(request.done)),
    "failed": (
        {"semantic_min_new_tokens": 500, "semantic_max_new_tokens": 600},
        lambda request: wait_for(request.done),
    ),
    "closed": ({}, lambda request: None),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_kept_request_keeps_neither_caches_nor_the_model(end):
    model = accelerated_copy(build(SMALL))
    found = weakref.ref(model)
    engine = BarkEngine(model)
    arguments, act = ENDS[end]
    request = engine.submit(**{**LONG, **arguments})
    act(request)
    engine.close()
    assert request.done()
    del model, arguments
    gc.collect()
    assert found() is None
    assert not [each for each in gc.get_objects() if type(each) is Slots]
    if end == "failed":
        with pytest.raises(IndexError, match="positions") as caught:
            request.result(0)
        assert "in take_together" in str(caught.value.__cause__) or "check_room" in str(caught.value.__cause__)


@pytest.mark.parametrize("busy", [False, True])
def test_an_engine_that_is_dropped_finishes_what_it_has_and_ends_its_thread(fast, busy):
    before = set(threading.enumerate())
    engine = BarkEngine(fast)
    request = engine.submit(**LONG, seed=3)
    if not busy:
        finished(request)
    del engine
    gc.collect()
    assert_as_alone(fast, Asked(LONG, seed=3), finished(request))
    wait_for(lambda: set(threading.enumerate()) == before)


CHANGES = {
    "moved": lambda model: model.half(),
    "loaded": lambda model: model.load_state_dict(build(SMALL, seed=5).state_dict()),
    "restored": restore_bark,
    "accelerated again": lambda model: accelerate_bark(model, weights="int8"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_has_changed(change):
    model = accelerated_copy(build(SMALL))
    with BarkEngine(model) as engine:
        finished(engine.submit(**SHORT))
        CHANGES[change](model)
        with pytest.raises(ValueError, match="as it was when the engine was made, got one that was"):
            engine.submit(**SHORT)


@torch.no_grad()
@pytest.mark.parametrize("change", ["loaded", "restored"])
def test_a_model_that_changes_while_a_request_runs(change):
    model, stays = (accelerated_copy(build(SMALL)) for _ in range(2))
    source = ModelSource(model)
    scheduler = Scheduler(source.models, Slots(source.models, 1))
    row = make_row(source, LONG, seed=1)
    scheduler.add(row)
    while row.request.status != "coarse":
        scheduler.turn()
    CHANGES[change](model)
    while scheduler.busy:
        scheduler.turn()
    if change == "loaded":
        with pytest.raises(ValueError, match="got one that was moved, cast or given other weights"):
            row.request.result(0)
    else:
        assert_as_alone(stays, Asked(LONG, seed=1), row.request)


def test_a_model_in_training_mode():
    model = accelerated_copy(build(SMALL), strict=False)
    with BarkEngine(model) as engine:
        model.train()
        with pytest.raises(ValueError, match="training mode"):
            engine.submit(**SHORT)
        with pytest.raises(ValueError, match="training mode"):
            BarkEngine(model)
        model.eval()
        is_well(model, engine)


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
    assert torch.equal(one.result(60), listed.result(60))


@pytest.mark.parametrize("sizes", [{"max_rows": 0}, {"max_rows": 2.5}, {"max_queued": -1}])
def test_bad_sizes(fast, sizes):
    with pytest.raises(ValueError, match=next(iter(sizes))):
        BarkEngine(fast, **sizes)


def test_no_model():
    with pytest.raises(TypeError, match="BarkModel"):
        BarkEngine(torch.nn.Linear(2, 2))


def collect(request) -> list:
    async def chunks():
        return [chunk async for chunk in request]

    return asyncio.run(chunks())


async def waited(request) -> torch.Tensor:
    return await request


IN_A_CHILD = {
    "submit": lambda engine, request: engine.submit(**SHORT),
    "result": lambda engine, request: request.result(),
    "iterate": lambda engine, request: list(request),
    "await": lambda engine, request: asyncio.run(waited(request)),
    "async for": lambda engine, request: collect(request),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("act", IN_A_CHILD)
def test_a_child_says_that_the_thread_is_its_parents(engine, act):
    with engine.submit(**{**LONG, "semantic_max_new_tokens": 85}, policy="exact") as request:
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            try:
                IN_A_CHILD[act](engine, request)
            except RuntimeError as error:
                os._exit(0 if "expected the process that made" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
