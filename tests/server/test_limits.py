"""What holds when many come, somebody leaves, or somebody sends what is no good."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest
from support.servers import BODY, LONG, SPEECH, is_held_back, leaving, listener, running
from support.waiting import LIMIT_S, until

from bark_accel import small_bark_path
from bark_accel.approximations import Approximations
from bark_accel.engine.scheduler import Scheduler
from bark_accel.server import app, speech
from bark_accel.server import run as serving
from bark_accel.server.schema import SpeechBody
from bark_accel.server.settings import ModelSpec, Settings
from bark_accel.server.speech import Speech, make_plan


@pytest.fixture(scope="module")
def narrow():
    """One row, one that waits."""
    with running(Settings(max_rows=1, max_queued=1, max_body_bytes=20_000)) as server:
        yield server


@pytest.fixture
def client(narrow):
    with narrow.client() as client:
        yield client


def test_who_is_too_many_is_told_to_come_back(narrow, client):
    with client.stream("POST", SPEECH, json=LONG), client.stream("POST", SPEECH, json=LONG):
        answer = client.post(SPEECH, json=BODY)
        assert answer.status_code == 429 and 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.json()["error"]["type"] == "rate_limit_exceeded"
    until(lambda: not narrow.users)
    assert client.post(SPEECH, json=BODY).status_code == 200


def test_a_client_that_leaves_frees_its_row(narrow, client):
    with leaving(narrow, most_s=100), client.stream("POST", SPEECH, json=LONG) as answer:
        next(answer.iter_bytes())
        until(lambda: narrow.engine.requests)


def test_a_client_that_leaves_before_the_first_sound(narrow):
    """It closes its socket as soon as its request is there."""
    with leaving(narrow, most_s=100), listener(narrow, LONG):
        until(lambda: narrow.users)


def test_a_slow_reader_holds_back_what_follows(narrow):
    """Chunks of text beyond those that fill the sockets' buffers are not generated: 25 MB would be all of it."""
    with leaving(narrow, most_s=150), listener(narrow, {**LONG, "response_format": "wav", "speed": 0.25}) as connection:
        assert connection.recv(1)
        until(lambda: is_held_back(narrow))
        assert narrow.users == 1


def test_how_slowly_somebody_reads_is_not_how_long_others_wait(server):
    """`Retry-After` is made of the time that requests have rows."""
    (speaker,) = server.state.models.loaded()
    options = SpeechBody(**{**BODY, "input": "Hello, my dog is cute. Good morning, my cat is big. " * 2})
    plan = make_plan(speaker, server.state.voices, options, options.input)
    learned = []

    async def read_slowly() -> None:
        """Each piece for four times as long as it was made, when nothing is any more."""
        read_at = begun
        with Speech(replace(plan, speaker=took(speaker, learned)), server.state.metrics) as speech:
            async for _ in speech:
                while server.engine.requests:
                    await asyncio.sleep(0.005)
                await asyncio.sleep(4 * (time.monotonic() - read_at))
                read_at = time.monotonic()

    begun = time.monotonic()
    asyncio.run(read_slowly())
    assert len(plan.chunks) > 1
    assert 0 < learned[0] < (time.monotonic() - begun) / 2


def took(speaker, learned: list):
    """The speaker, which tells what it learns."""
    told = copy.copy(speaker)
    told.took = learned.append
    return told


def test_what_is_said_next_waits_for_what_others_hear_now(server, monkeypatch):
    """Each chunk of a text comes after the one before it, so that it pushes no other stream's sound aside."""
    asked, submit = [], server.engine.submit

    def submitted(**arguments):
        asked.append((arguments.get("after"), submit(**arguments)))
        return asked[-1][1]

    monkeypatch.setattr(server.engine, "submit", submitted)
    for voice in ("slt", "alloy"):
        asked.clear()
        text = "Hello, my dog is cute. Good morning, my cat is big. " * 6
        assert server.post(SPEECH, json={**BODY, "input": text, "voice": voice}).status_code == 200
        before, made = zip(*asked, strict=True)
        assert len(made) > 2 and before == (None, *made[:-1])


def test_bodies_are_bounded(client):
    answer = client.post(SPEECH, content=b"x" * 30_000, headers={"content-type": "application/json"})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"

    def endless():
        for _ in range(100):
            yield b" " * 1000

    answer = client.post(SPEECH, content=endless(), headers={"content-type": "application/json"})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"


def test_the_same_bytes_alone_and_under_load(server):
    asked = [{**BODY, "seed": seed, "response_format": name} for name in ("mp3", "opus", "flac") for seed in range(3)]
    with server.client() as client:
        alone = [client.post(SPEECH, json=body).content for body in asked]
        with ThreadPoolExecutor(len(asked)) as pool:
            crowd = list(pool.map(lambda body: client.post(SPEECH, json=body).content, asked))
    assert crowd == alone and len(set(alone)) == len(alone)


def test_a_short_rush(server, monkeypatch):
    """Half as many again as there is room for, some of whom leave: 200 or 429, and then all is free."""
    statuses, all_are_there, make_plan = [], threading.Event(), speech.make_plan
    monkeypatch.setattr(speech, "make_plan", lambda *given: all_are_there.wait(LIMIT_S) and make_plan(*given))

    def ask(number: int) -> None:
        try:
            with client.stream("POST", SPEECH, json={**BODY, "seed": number}) as answer:
                statuses.append(answer.status_code)
                if number % 5:
                    answer.read()
        except httpx.HTTPError as error:
            statuses.append(error)

    with server.client() as client, ThreadPoolExecutor(60) as pool:
        asked = pool.map(ask, range(60))
        until(lambda: len(statuses) == 20)
        all_are_there.set()
        list(asked)
    assert statuses == [429] * 20 + [200] * 40
    until(lambda: server.idle)
    figures = server.get("/metrics").text
    assert 'bark_accel_rows_in_use{model="small-bark"} 0.0' in figures
    assert 'bark_accel_requests_total{status="429"}' in figures and 'status="5' not in figures


def test_a_deadline(monkeypatch):
    monkeypatch.setattr(serving, "_LEAST_S", LIMIT_S)
    with running(Settings(deadline_s=0.02)) as server:
        answer = server.post(SPEECH, json=BODY)
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "deadline_exceeded"
        until(lambda: not server.engine.requests)


def test_after_the_first_sound_a_deadline_breaks_off(narrow, client, deadlines):
    """A shorter sound would pass for the whole."""
    with client.stream("POST", SPEECH, json=LONG) as answer:
        pieces = answer.iter_bytes()
        next(pieces)
        with deadlines.passed(), pytest.raises(httpx.RemoteProtocolError):
            list(pieces)
    with client.stream("POST", SPEECH, json={**LONG, "stream_format": "sse"}) as answer:
        lines = filter(None, answer.iter_lines())
        events = [next(lines)]
        with deadlines.passed():
            events += lines
    assert '"speech.audio.delta"' in events[0] and '"deadline_exceeded"' in events[-1]
    assert deadlines.given_s == {narrow.state.settings.deadline_s}


def test_keys():
    with running(Settings(api_keys=("secret", "other"))) as server, server.client() as client:
        assert client.get("/health").status_code == client.get("/").status_code == 200
        for path in ("/v1/models", "/v1/audio/voices", "/metrics"):
            for key in ("Bearer secre", "secret", "Basic secret", ""):
                answer = client.get(path, headers={"authorization": key})
                assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
            for key in ("secret", "other"):
                assert client.get(path, headers={"authorization": f"Bearer {key}"}).status_code == 200
        assert client.post(SPEECH, json=BODY).status_code == 401


def test_other_sites_and_other_names():
    settings = Settings(hosts=("127.0.0.1",), cors_origins=("https://good.example",))
    with running(settings) as server, server.client() as client:
        answer = client.get("/health", headers={"host": "evil.example"})
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_host"
        allowed = client.get("/health", headers={"origin": "https://good.example"}).headers
        assert allowed["access-control-allow-origin"] == "https://good.example"
        refused = client.get("/health", headers={"origin": "https://evil.example"}).headers
        assert "access-control-allow-origin" not in refused


def test_several_models_are_loaded_when_asked_for():
    small = str(small_bark_path())
    models = (ModelSpec("small-bark"), ModelSpec("int8", small, Approximations("int8")))
    settings = Settings(models=models, max_memory_bytes=1)
    with running(settings) as server, server.client() as client:

        def loaded():
            return {m["id"] for m in client.get("/v1/models").json()["data"] if m["loaded"] and not m["alias_of"]}

        assert loaded() == {"small-bark"}
        assert client.post(SPEECH, json={**BODY, "model": "int8"}).content != client.post(SPEECH, json=BODY).content
        with client.stream("POST", SPEECH, json=LONG):
            refused = client.post(SPEECH, json={**BODY, "model": "int8"})
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "no_memory"
        until(lambda: not server.users)
        assert client.post(SPEECH, json={**BODY, "model": "int8"}).status_code == 200
        assert loaded() == {"int8"}


def test_a_model_that_is_there_later(tmp_path, monkeypatch):
    """As where the network comes up after the server."""
    monkeypatch.setattr(app, "_LOAD_AGAIN_S", 0.1)
    folder = tmp_path / "late"
    with running(Settings(models=(ModelSpec("late", str(folder)),)), ready=False) as server:
        until(lambda: server.state.failure)
        folder.symlink_to(small_bark_path())
        until(lambda: server.state.ready and server.state.failure is None)
        assert server.post(SPEECH, json={**BODY, "model": "late"}).status_code == 200


def test_an_engine_that_has_failed_is_not_ready(monkeypatch):
    def fails(self):
        raise RuntimeError("a bug")

    with running(Settings(max_rows=1)) as server, server.client() as client:
        assert client.get("/ready").status_code == 200 and client.get("/health").json()["status"] == "ok"
        monkeypatch.setattr(Scheduler, "turn", fails)
        assert client.post(SPEECH, json=BODY).status_code >= 500
        monkeypatch.undo()
        ready = client.get("/ready")
        assert ready.status_code == 503 and "has failed" in ready.json()["error"]["message"]
        assert client.get("/health").json()["status"] == "degraded"


def test_a_model_that_cannot_be_loaded(tmp_path):
    settings = Settings(models=(ModelSpec("gone", str(tmp_path)),))
    with running(settings, ready=False) as server, server.client() as client:
        until(lambda: server.state.failure)
        assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == client.post(SPEECH, json=BODY).status_code == 503
