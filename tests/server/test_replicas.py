"""Replicas: what is promised of one process holds of several, over loopback."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.replicas import client_of, metric, only, pids, stopped
from support.servers import BODY, LONG, SPEECH, leaving, running
from support.waiting import LIMIT_S, until

from bark_accel import small_bark_path
from bark_accel.server import run as serving
from bark_accel.server.replicas import engine as replicated
from bark_accel.server.replicas.request import RemoteRequest
from bark_accel.server.settings import Settings

if len(os.sched_getaffinity(0)) < 2:
    pytest.skip("needs two CPUs", allow_module_level=True)

VOICE = (small_bark_path() / "speaker_embeddings" / "rms.npz").read_bytes()


@pytest.fixture
def client(pool):
    with client_of(pool) as client:
        yield client


def test_every_replica_says_what_one_process_says(server, pool, client):
    asked = [
        {**BODY, "seed": seed, "response_format": name, "policy": policy, "voice": voice}
        for seed, name, policy, voice in [
            *((1, "pcm", "low_latency", "slt"), (2, "mp3", "exact", "rms"), (3, "opus", "preview", "alloy")),
        ]
    ] + [{**LONG, "input": "Hello, my dog is cute. " * 4, "seed": 4}]
    alone = [server.post(SPEECH, json=body).content for body in asked]
    assert len(set(alone)) == len(asked)
    for index in (0, 1):
        with only(pool, index):
            assert [client.post(SPEECH, json=body).content for body in asked] == alone
    with ThreadPoolExecutor(4) as many:
        assert list(many.map(lambda body: client.post(SPEECH, json=body).content, asked)) == alone


def test_a_request_makes_the_same_voice(server, pool, client):
    """Later chunks of a text without a voice have that of the first one."""
    made = []
    for one in (server, pool):
        (speaker,) = one.state.models.loaded()
        request = speaker.submit("hello", None, seed=3, policy="low_latency")
        sound = request.result(LIMIT_S)
        assert request.done() and request.seed == 3
        made.append((sound, request.preset))
    (here, voice), (there, other) = made
    assert torch.equal(here, there) and voice.keys() == other.keys()
    assert all((voice[part] == other[part]).all() for part in voice)


def test_an_uploaded_voice_reaches_every_replica(pool, client):
    files = {"file": ("v.npz", VOICE)}
    assert client.post("/v1/audio/voices", data={"name": "mine"}, files=files).status_code == 201
    for index in (0, 1):
        with only(pool, index):
            mine, rms = (client.post(SPEECH, json={**BODY, "voice": name}).content for name in ("mine", "rms"))
            assert mine == rms
    client.delete("/v1/audio/voices/mine")


def test_an_error_of_the_engine_comes_back(pool, client):
    (speaker,) = pool.state.models.loaded()
    with pytest.raises(ValueError, match="must be greater than 0"):
        speaker.submit("hello", None, seed=3, policy="low_latency", semantic_max_new_tokens=-1).result(LIMIT_S)


def test_what_is_heard_after_another_is_due_after_it_there(pool, client, monkeypatch):
    """The replica that has the other one is told which, every other one how long that lasts."""
    (speaker,) = pool.state.models.loaded()
    sent, message = [], RemoteRequest.message

    def noted(request, number):
        sent.append(message(request, number))
        return sent[-1]

    monkeypatch.setattr(RemoteRequest, "message", noted)
    options = {"seed": 3, "policy": "exact"}
    first = speaker.submit("hello my dog is cute", None, **options)
    second = speaker.submit("hello", None, **options, after=first)
    for request in (first, second):
        request.result(LIMIT_S)
    first.waits_from = time.monotonic() + LIMIT_S
    third = speaker.submit("hello", None, **options, after=first)
    third.result(LIMIT_S)
    one, two, three = sent
    assert (one.after, two.after, three.after) == (None, one.number, one.number)
    assert one.heard_in_s == 0 and 0 < three.heard_in_s < LIMIT_S


def test_requests_go_to_the_least_loaded(pool, client):
    (speaker,) = pool.state.models.loaded()
    with stopped(pids(pool)):
        for expected in ([1, 0], [1, 1], [2, 1], [2, 2], [2, 2]):
            speaker.submit("hello my dog is cute", None, seed=3, policy="exact")
            assert [len(replica.requests) for replica in pool.engine.replicas] == expected
        assert pool.engine.requests == 5 and speaker.rows_in_use == 4 and speaker.waiting == 1


def test_a_client_that_leaves_frees_its_rows(pool, client):
    with leaving(pool, most_s=100), client.stream("POST", SPEECH, json=LONG) as answer:
        next(answer.iter_bytes())
        until(lambda: pool.engine.requests)


def test_figures_do_not_hold_up_the_loop(pool, client, monkeypatch):
    """The memory of each replica is counted beside it: other requests are answered meanwhile."""
    begun, told = threading.Event(), threading.Event()

    def counted(pid):
        begun.set()
        assert told.wait(LIMIT_S)
        return 1

    monkeypatch.setattr(replicated, "proportional_bytes", counted)
    with ThreadPoolExecutor(1) as asking:
        figures = asking.submit(client.get, "/metrics")
        assert begun.wait(LIMIT_S)
        try:
            assert pool.get("/health").status_code == 200
        finally:
            told.set()
        assert metric(figures.result().text, "bark_accel_replica_bytes") == [1, 1]


def test_one_line_for_all(pool, client):
    """Two rows each and one that waits: the sixth is refused."""
    with ThreadPoolExecutor(5) as asking:
        opened = [client.build_request("POST", SPEECH, json=LONG) for _ in range(5)]
        answers = [asking.submit(client.send, request, stream=True) for request in opened]
        until(lambda: pool.users == 5)
        refused = client.post(SPEECH, json=BODY)
        assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 60
        until(lambda: sum(metric(client.get("/metrics").text, "bark_accel_replica_rows_in_use")) == 4)
        for answer in answers:
            answer.result().close()
    until(lambda: pool.idle)
    assert client.post(SPEECH, json=BODY).status_code == 200


def test_ready_once_all_are_and_a_deadline(monkeypatch):
    fork, gate, engines = replicated.ReplicatedEngine._fork, threading.Event(), []

    def late(engine, index):
        engines.append(engine)
        assert index == 0 or gate.wait(LIMIT_S)
        return fork(engine, index)

    monkeypatch.setattr(replicated.ReplicatedEngine, "_fork", late)
    monkeypatch.setattr(serving, "_LEAST_S", LIMIT_S)
    with running(Settings(replicas=2, deadline_s=0.02), ready=False) as server:
        until(lambda: engines and engines[0].replicas[0].ready)
        assert server.get("/ready").status_code == 503
        gate.set()
        until(lambda: server.get("/ready").status_code == 200)
        assert all(replica.ready for replica in engines[0].replicas)
        answer = server.post(SPEECH, json=BODY)
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "deadline_exceeded"
        until(lambda: server.idle)
