"""What an engine does not take: bad arguments among good ones, too many requests, a model that has changed."""

from __future__ import annotations

import threading

import pytest
import torch
from support.bark_models import SMALL, build, texts
from support.engine_requests import LONG, SHORT, Asked, assert_as_alone, finished, is_well
from support.parity import accelerated_copy
from transformers import LogitsProcessor, MaxTimeCriteria, StoppingCriteria

from bark_accel import (
    BarkEngine,
    EngineBusy,
    accelerate_bark,
    restore_bark,
)
from bark_accel.engine.engine import make_row
from bark_accel.engine.errors import NotShared
from bark_accel.engine.scheduler import Scheduler
from bark_accel.engine.slots import Slots
from bark_accel.patches.engine import ModelSource


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


def test_objects_that_cannot_be_copied_are_refused_by_what_they_do(fast, engine):
    class Holds(StoppingCriteria):
        def __init__(self):
            self.lock = threading.Lock()

        def __call__(self, ids, scores, **kwargs):
            return torch.zeros(ids.shape[0], dtype=torch.bool)

    with pytest.raises(NotShared, match="Holds"):
        engine.submit(**SHORT, semantic_stopping_criteria=[Holds()])


def test_full(fast):
    with BarkEngine(fast, max_rows=1, max_queued=2) as engine:
        requests = [engine.submit(**LONG) for _ in range(3)]
        with pytest.raises(EngineBusy, match=r"1 running .* 2 waiting"):
            engine.submit(**SHORT)
        requests[1].cancel()
        finished(engine.submit(**SHORT))


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


@pytest.mark.parametrize("sizes", [{"max_rows": 0}, {"max_rows": 2.5}, {"max_queued": -1}])
def test_bad_sizes(fast, sizes):
    with pytest.raises(ValueError, match=next(iter(sizes))):
        BarkEngine(fast, **sizes)


def test_no_model():
    with pytest.raises(TypeError, match="BarkModel"):
        BarkEngine(torch.nn.Linear(2, 2))
