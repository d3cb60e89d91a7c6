"""Requests that fail, are cancelled or late; engines that are closed, interrupted or dropped."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from concurrent import futures
from contextlib import suppress

import numpy as np
import pytest
import torch
from support.bark_models import SMALL, build
from support.engine_requests import INPUTS, LONG, SHORT, Asked, assert_as_alone, finished, is_well
from support.parity import accelerated_copy
from support.waiting import LIMIT_S, until

from bark_accel import (
    BarkEngine,
    DeadlineExceeded,
    EngineClosed,
    RequestCancelled,
    SpeechRequest,
)
from bark_accel.engine.engine import make_row
from bark_accel.engine.scheduler import Scheduler
from bark_accel.engine.shared_steps import SharedSteps
from bark_accel.engine.slots import Slots
from bark_accel.patches.engine import ModelSource
from bark_accel.stages import fine


def test_what_fails_while_it_generates_fails_alone(fast, engine):
    """More tokens than there are positions: stock fails there, too."""
    good = engine.submit(**LONG, seed=1)
    endless = {**INPUTS, "semantic_min_new_tokens": 500, "semantic_max_new_tokens": 600}
    bad = engine.submit(**endless, policy="preview")
    with pytest.raises(IndexError, match="positions"):
        bad.result(LIMIT_S)
    with pytest.raises(IndexError, match="positions"):
        list(bad)
    assert_as_alone(fast, Asked(LONG, seed=1), finished(good))
    is_well(fast, engine)


def test_what_fails_when_a_window_begins_fails_alone(fast, engine, monkeypatch):
    """Such as memory for it: that is found out where the scheduler looks who has work."""
    start, begun = fine.FineStage.start, []

    def fail_once(self, *given):
        begun.append(None)
        if len(begun) == 1:
            raise MemoryError("planted")
        return start(self, *given)

    monkeypatch.setattr(fine.FineStage, "start", fail_once)
    requests = [engine.submit(**LONG, seed=seed) for seed in range(3)]
    errors = [request._future.exception(LIMIT_S) for request in requests]
    assert [type(error) for error in errors if error is not None] == [MemoryError]
    for seed, (request, error) in enumerate(zip(requests, errors, strict=True)):
        if error is None:
            assert_as_alone(fast, Asked(LONG, seed=seed), request)
    is_well(fast, engine)


def test_the_thread_ends_with_all_its_requests(fast, monkeypatch):
    """Whatever a bug raises: nobody waits for ever, and nobody is let in."""

    def fails(self):
        raise SystemExit(3)

    monkeypatch.setattr(Scheduler, "turn", fails)
    engine = BarkEngine(fast)
    with pytest.raises(SystemExit):
        engine.submit(**SHORT).result(LIMIT_S)
    with pytest.raises(EngineClosed):
        engine.submit(**SHORT)


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


def test_who_fail_together_have_an_error_each(monkeypatch, hold):
    """Each listener adds to the traceback of his own."""

    def fails(self, slots, ids, rows):
        raise MemoryError("no room for a step")

    model = accelerated_copy(build(SMALL), speculate=False)
    with BarkEngine(model, max_rows=3) as engine:
        with hold():
            requests = [engine.submit(**LONG, seed=seed) for seed in range(3)]
            monkeypatch.setattr(SharedSteps, "scores", fails)
        errors = []
        for request in requests:
            with pytest.raises(MemoryError, match="no room for a step") as raised:
                request.result(LIMIT_S)
            errors.append(raised.value)
        monkeypatch.undo()
        is_well(model, engine)
    assert len(set(map(id, errors))) == 3
    assert all("in fails" in str(error.__cause__) for error in errors), "where it was raised is told by the cause"


def test_a_finished_request_is_kept_by_its_owner_alone(fast, engine):
    request = engine.submit(**SHORT, seed=1)
    assert len(request.result(LIMIT_S))
    kept = weakref.ref(request)
    del request
    until(lambda: gc.collect() is None or kept() is None)


def test_a_request_whose_submit_was_interrupted_is_kept_by_nobody(fast, engine, monkeypatch):
    kept = []

    def interrupted(self, call):
        kept.append(weakref.ref(self))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SpeechRequest, "add_done_callback", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.submit(**SHORT, seed=1)
    until(lambda: engine.requests == 0)
    is_well(fast, engine)
    until(lambda: gc.collect() is None or kept[0]() is None)


def test_a_callback_that_raises_ends_nobody(fast, engine, caplog):
    """Not even by `sys.exit`, which would end the thread that all others wait for."""
    request, other = (engine.submit(**LONG, seed=seed) for seed in (1, 2))
    request.add_done_callback(lambda: sys.exit(3))
    assert sum(map(len, request)) == len(request.result(LIMIT_S))
    assert_as_alone(fast, Asked(LONG, seed=2), finished(other))
    is_well(fast, engine)
    assert "callback" in caplog.text


ENDINGS = {
    "done": (lambda request: request.finish(None), 2),
    "failed": (lambda request: request.end(KeyError("planted")), 2),
    "cancelled": (SpeechRequest.cancel, 0),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_callback_finds_all_that_belongs_to_the_end(fast, ending):
    """It may read what is left, in the engine's thread, and the iterator ends."""
    request, heard, taken = make_row(ModelSource(fast), SHORT, policy="preview").request, [], []
    request.begin()
    for _ in range(2):
        request.deliver(torch.zeros(1, 5))

    def hear():
        taken.append(request.seconds_taken)
        with suppress(KeyError):
            heard.extend(request)

    request.add_done_callback(hear)
    end, chunks = ENDINGS[ending]
    thread = threading.Thread(target=end, args=(request,), daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    assert not thread.is_alive() and len(heard) == chunks and taken[0] > 0


@pytest.mark.parametrize("end", [SpeechRequest.cancel, lambda request: request.end(KeyError("planted"))])
def test_who_has_ended_early_keeps_no_sound(fast, end):
    request, sound = make_row(ModelSource(fast), SHORT, policy="preview").request, np.zeros((1, 5), dtype=np.float32)
    kept = weakref.ref(sound)
    request.deliver(torch.from_numpy(sound))
    end(request)
    del sound
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("end", [SpeechRequest.cancel, lambda request: request.end(EngineClosed("planted"))])
def test_who_finishes_while_it_is_ended_has_all_its_sound(fast, end):
    """The engine's thread may be sooner than who cancels a request or closes the engine, and has begun to."""
    request = make_row(ModelSource(fast), SHORT, policy="preview").request
    sound = torch.arange(5.0)
    request.deliver(sound[None])

    class Overtaken(futures.Future):
        def set_exception(self, error):
            request.finish(None)
            super().set_exception(error)

    request._future = Overtaken()
    end(request)
    assert torch.equal(request.result(0), sound)


def test_sound_that_comes_while_a_request_ends_is_not_kept(fast):
    """The engine's next turn drops it."""
    row, sound = make_row(ModelSource(fast), SHORT, policy="preview"), np.zeros((1, 5), dtype=np.float32)
    kept, check = weakref.ref(sound), row.request.check
    row.request.check = lambda: (check(), row.request.end(KeyError("planted")))
    row.request.deliver(torch.from_numpy(sound))
    del sound, row.request.check
    source = ModelSource(fast)
    scheduler = Scheduler(source.models, Slots(source.models, 1))
    scheduler.add(row)
    scheduler.turn()
    gc.collect()
    assert kept() is None


def test_a_cancelled_request_has_taken_time(engine):
    request = engine.submit(**LONG, seed=1)
    until(lambda: request.status != "queued")
    request.cancel()
    until(lambda: not engine.requests)
    assert request.seconds_taken > 0


def test_late(fast, engine, hold):
    request = engine.submit(**LONG, deadline_s=1e-6)
    with pytest.raises(DeadlineExceeded, match="1e-06 s"):
        request.result(LIMIT_S)
    with pytest.raises(DeadlineExceeded):
        next(iter(request))
    with hold(), pytest.raises(TimeoutError, match="within 1e-06 s, got a request that is"):
        engine.submit(**LONG).result(1e-6)
    is_well(fast, engine)


def test_closed_in_the_middle(fast, stuck):
    engine = BarkEngine(fast, max_rows=2)
    requests = [engine.submit(**LONG, seed=seed) for seed in range(4)]
    engine.close()
    for request in requests:
        with pytest.raises(EngineClosed, match="closed before"):
            request.result(0)
    with pytest.raises(EngineClosed, match="open"):
        engine.submit(**SHORT)
    engine.close()


def test_closing_may_finish_what_is_there(fast):
    engine = BarkEngine(fast, max_rows=2)
    requests = [engine.submit(**LONG, seed=seed) for seed in range(4)]
    engine.close(drain=True)
    for seed, request in enumerate(requests):
        assert_as_alone(fast, Asked(LONG, seed=seed), request)
    with pytest.raises(EngineClosed, match="open"):
        engine.submit(**SHORT)


def test_a_bug_in_the_loop_leaves_nobody_waiting(fast, monkeypatch):
    monkeypatch.setattr(Scheduler, "turn", lambda self: 1 / 0)
    monkeypatch.setattr("bark_accel.engine.worker.logger.disabled", True)
    with BarkEngine(fast) as engine:
        request = engine.submit(**LONG)
        with pytest.raises(ZeroDivisionError):
            request.result(LIMIT_S)
        with pytest.raises(EngineClosed):
            engine.submit(**SHORT)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_block_that_raises_cancels(fast, error, stuck):
    with pytest.raises(error), BarkEngine(fast) as engine:
        request = engine.submit(**LONG)
        raise error
    with pytest.raises(EngineClosed):
        request.result(0)


def test_whoever_is_interrupted_while_it_drains_cancels_the_rest(fast, monkeypatch, stuck):
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
            assert ended.wait(LIMIT_S)
        return forward(*args)

    forward = fine.bidirectional_forward
    monkeypatch.setattr(fine, "bidirectional_forward", wait_in_the_second_pass)
    request = engine.submit(**LONG)
    assert begun.wait(LIMIT_S)
    closing = threading.Thread(target=engine.close)
    closing.start()
    until(request.done)
    ended.set()
    closing.join(LIMIT_S)
    assert not closing.is_alive() and len(passes) == 2


ENDS = {
    "done": ({}, lambda request: request.result(LIMIT_S)),
    "cancelled": ({}, lambda request: until(lambda: request.status not in ("queued", "semantic")) or request.cancel()),
    "late": ({"deadline_s": 0.05}, lambda request: until(request.done)),
    "failed": (
        {"semantic_min_new_tokens": 500, "semantic_max_new_tokens": 600},
        lambda request: until(request.done),
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
    until(lambda: set(threading.enumerate()) <= before)
