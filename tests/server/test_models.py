"""Models that come and go while requests are there, and what one says that says nothing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import httpx
import pytest
from support.servers import SPEECH, running
from support.waiting import LIMIT_S, until

from bark_accel import acceleration_report, small_bark_path
from bark_accel.approximations import Approximations
from bark_accel.server import run, speech
from bark_accel.server.settings import ModelSpec, Settings
from bark_accel.server.speaker import Speaker

SMALL = str(small_bark_path())
BODY = {"model": "small-bark", "voice": "alloy", "input": "Hello.", "response_format": "pcm", "seed": 5}
INT8 = {**BODY, "model": "int8"}
MODELS = (ModelSpec("small-bark"), ModelSpec("int8", SMALL, Approximations("int8")))


@contextmanager
def served(**settings):
    """A server of two models, the first loaded, and a client."""
    given = Settings(models=MODELS, **settings)
    with running(given) as server, server.client() as client:
        yield server, client


class Gate:
    """Stands before a function until it is opened."""

    def __init__(self, function):
        self.reached, self.opened, self._function = threading.Event(), threading.Event(), function

    def __call__(self, *args):
        self.reached.set()
        assert self.opened.wait(LIMIT_S)
        return self._function(*args)


@pytest.fixture
def gate_of_loads(monkeypatch):
    """Loads of all but the first model wait."""
    load = Speaker.load
    gate = Gate(load)
    monkeypatch.setattr(Speaker, "load", lambda spec, s: (load if spec.path is None else gate)(spec, s))
    yield gate
    gate.opened.set()


def test_a_load_holds_up_nobody_else(gate_of_loads):
    with served() as (_, client), ThreadPoolExecutor(2) as pool:
        try:
            waiting = [pool.submit(client.post, SPEECH, json=INT8) for _ in range(2)]
            assert gate_of_loads.reached.wait(LIMIT_S)
            assert client.post(SPEECH, json=BODY).status_code == 200
        finally:
            gate_of_loads.opened.set()
        assert [answer.result().status_code for answer in waiting] == [200, 200]


def test_a_load_counts_towards_the_deadline(gate_of_loads, monkeypatch):
    monkeypatch.setattr(run, "_LEAST_S", LIMIT_S)
    with served(deadline_s=0.02) as (server, client):
        try:
            answer = client.post(SPEECH, json=INT8)
            assert answer.status_code == 504 and answer.json()["error"]["code"] == "deadline_exceeded"
            assert gate_of_loads.reached.wait(LIMIT_S) and server.idle
        finally:
            gate_of_loads.opened.set()
        # It goes on for those who come later.
        until(lambda: len(server.state.models.loaded()) == 2)


def test_a_request_that_is_planned_keeps_its_model(monkeypatch):
    gate = Gate(speech.make_plan)
    with served(max_memory_bytes=1) as (server, client), ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(speech, "make_plan", gate)
        planned = pool.submit(client.post, SPEECH, json=BODY)
        try:
            assert gate.reached.wait(LIMIT_S)
            refused = client.post(SPEECH, json=INT8)
        finally:
            gate.opened.set()
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "no_memory"
        assert planned.result().status_code == 200
        for wrong in ({"input": "zebra"}, {"voice": "nobody"}):
            assert client.post(SPEECH, json={**BODY, **wrong}).status_code == 400
        until(lambda: server.idle)


def test_copies_of_weights_count():
    speaker = Speaker.load(MODELS[1], Settings())
    try:
        model = speaker._loaded.model
        copies = sum(stage.copied_bytes for stage in acceleration_report(model).stages)
        own = sum(parameter.nbytes for parameter in model.parameters())
        assert copies and speaker.nbytes == own + copies + speaker._engine.cache_bytes
    finally:
        speaker.close()


def test_no_sound_is_no_answer(server, monkeypatch):
    """A model that ends at once, alone and after a first chunk of text."""
    (speaker,) = server.state.models.loaded()
    submit = speaker.submit
    monkeypatch.setattr(speaker, "submit", partial(submit, min_eos_p=1e-30))
    answer = server.post(SPEECH, json=BODY)
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "no_sound"

    said = []

    def once(*args, **options):
        said.append(args)
        return submit(*args, **options, **({"min_eos_p": 1e-30} if len(said) > 1 else {}))

    monkeypatch.setattr(speaker, "submit", once)
    with pytest.raises(httpx.RemoteProtocolError):
        server.post(SPEECH, json={**BODY, "input": "Hello, my dog is cute. " * 8})
    until(lambda: server.idle)
