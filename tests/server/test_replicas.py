"""Replicas: what is promised of one process holds of several, on real processes and over loopback."""

from __future__ import annotations

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from support.bark_models import SUNO, build
from support.servers import running, until

from bark_accel import small_bark_path
from bark_accel.approximations import Approximations
from bark_accel.server.replicas import engine as replicated
from bark_accel.server.replicas.request import RemoteRequest
from bark_accel.server.settings import ModelSpec, Settings
from bark_accel.server.speaker import Speaker

if len(os.sched_getaffinity(0)) < 2:
    pytest.skip("needs two CPUs", allow_module_level=True)

VOICE = (small_bark_path() / "speaker_embeddings" / "rms.npz").read_bytes()
BODY = {"model": "tts-1", "voice": "alloy", "input": "Hello, my dog is cute.", "response_format": "pcm", "seed": 5}
LONG = {**BODY, "input": "Hello, my dog is cute. Good morning, my cat is big. " * 60}
SPEECH = "/v1/audio/speech"


@pytest.fixture(scope="module")
def pool():
    """Two replicas of one thread and two rows each; one request may wait."""
    with running(Settings(replicas=2, max_rows=2, max_queued=1)) as server:
        yield server


@pytest.fixture
def client(pool):
    until(lambda: all(replica.ready for replica in pool.engine.replicas))
    with httpx.Client(base_url=pool.url, timeout=60) as client:
        yield client
    until(lambda: not users(pool) and not pool.engine.requests)


def users(server) -> int:
    return sum(speaker.users for speaker in server.state.models.loaded())


def pids(server) -> list[int]:
    return [replica.link.pid for replica in server.engine.replicas if replica.link]


def runs(pid: int) -> bool:
    """Tell whether there is such a process, other than one that has ended and is not yet waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@contextmanager
def only(server, index: int):
    """Give all requests to one replica."""
    others = [replica for replica in server.engine.replicas if replica.index != index]
    links = [replica.link for replica in others]
    for replica in others:
        replica.ready = False
    try:
        yield
    finally:
        for replica, link in zip(others, links, strict=True):
            # Another process says itself when it is ready.
            replica.ready = replica.ready or (link is not None and replica.link is link)


# The same as one process.


def test_every_replica_says_what_one_process_says(server, pool, client):
    asked = [
        {**BODY, "seed": seed, "response_format": name, "policy": policy, "voice": voice}
        for seed, name, policy, voice in [
            *((1, "pcm", "low_latency", "slt"), (2, "mp3", "exact", "rms"), (3, "opus", "preview", "alloy")),
        ]
    ] + [{**LONG, "input": "Hello, my dog is cute. " * 4, "seed": 4}]
    alone = [httpx.post(server.url + SPEECH, json=body, timeout=60).content for body in asked]
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
        sound = request.result(30)
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
        speaker.submit("hello", None, seed=3, policy="low_latency", semantic_max_new_tokens=-1).result(30)


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
        request.result(30)
    third = speaker.submit("hello", None, **options, after=first)
    third.result(30)
    one, two, three = sent
    assert (one.after, two.after, three.after) == (None, one.number, one.number)
    assert one.heard_in_s == 0 and 0 < three.heard_in_s < first.seconds_ready


def test_requests_go_to_the_least_loaded(pool, client):
    (speaker,) = pool.state.models.loaded()
    for expected in ([1, 0], [1, 1], [2, 1], [2, 2], [2, 2]):
        speaker.submit("hello my dog is cute", None, seed=3, policy="exact")
        assert [len(replica.requests) for replica in pool.engine.replicas] == expected
    assert pool.engine.requests == 5 and speaker.rows_in_use == 4 and speaker.waiting == 1


def test_a_client_that_leaves_frees_its_rows(pool, client):
    with client.stream("POST", SPEECH, json=LONG) as answer:
        next(answer.iter_bytes())
        assert pool.engine.requests
    until(lambda: not users(pool) and not pool.engine.requests, 2)


def test_figures_do_not_hold_up_the_loop(pool, client, monkeypatch):
    """The memory of each replica is counted beside it: other requests are answered meanwhile."""
    begun, told = threading.Event(), threading.Event()

    def counted(pid):
        begun.set()
        assert told.wait(30)
        return 1

    monkeypatch.setattr(replicated, "proportional_bytes", counted)
    with ThreadPoolExecutor(1) as asking:
        figures = asking.submit(client.get, "/metrics")
        assert begun.wait(30)
        try:
            assert httpx.get(f"{pool.url}/health", timeout=5).status_code == 200
        finally:
            told.set()
        assert metric(figures.result().text, "bark_accel_replica_bytes") == [1, 1]


def test_one_line_for_all(pool, client):
    """Two rows each and one that waits: the sixth is refused."""
    with ThreadPoolExecutor(5) as asking:
        opened = [client.build_request("POST", SPEECH, json=LONG) for _ in range(5)]
        answers = [asking.submit(client.send, request, stream=True) for request in opened]
        until(lambda: users(pool) == 5)
        refused = client.post(SPEECH, json=BODY)
        assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 60
        until(lambda: sum(metric(client.get("/metrics").text, "bark_accel_replica_rows_in_use")) == 4)
        for answer in answers:
            answer.result().close()
    until(lambda: not users(pool) and not pool.engine.requests, 5)
    assert client.post(SPEECH, json=BODY).status_code == 200


def metric(figures: str, name: str) -> list[float]:
    return [float(line.split()[-1]) for line in figures.splitlines() if line.startswith(name + "{")]


def test_ready_once_all_are_and_a_deadline(monkeypatch):
    fork, gate, engines = replicated.ReplicatedEngine._fork, threading.Event(), []

    def late(engine, index):
        engines.append(engine)
        assert index == 0 or gate.wait(60)
        return fork(engine, index)

    monkeypatch.setattr(replicated.ReplicatedEngine, "_fork", late)
    with running(Settings(replicas=2, deadline_s=0.02), ready=False) as server:
        until(lambda: engines and engines[0].replicas[0].ready, 60)
        assert httpx.get(f"{server.url}/ready").status_code == 503
        gate.set()
        until(lambda: httpx.get(f"{server.url}/ready").status_code == 200)
        assert all(replica.ready for replica in engines[0].replicas)
        answer = httpx.post(server.url + SPEECH, json=BODY)
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "deadline_exceeded"
        until(lambda: not server.engine.requests, 2)


# Processes.


def test_each_is_pinned_to_its_own_cores(pool, client):
    sets = [os.sched_getaffinity(pid) for pid in pids(pool)]
    assert [len(cpus) for cpus in sets] == [1, 1] and not sets[0] & sets[1]
    assert sets[0] | sets[1] <= os.sched_getaffinity(0)
    for pid, cpus in zip(pids(pool), sets, strict=True):
        threads = [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
        assert len(threads) > 2 and all(os.sched_getaffinity(thread) == cpus for thread in threads)


@pytest.mark.parametrize("stream_format", ["audio", "sse"])
def test_a_replica_that_is_killed(pool, client, stream_format):
    """Its stream breaks off; the other one's goes on, and another process takes its place."""
    body = {**BODY, "input": "Hello, my dog is cute. " * 10}
    whole = client.post(SPEECH, json=body).content
    before = pids(pool)
    deaths = sum(replica.deaths for replica in pool.engine.replicas)
    with only(pool, 0):
        long = client.build_request("POST", SPEECH, json={**LONG, "stream_format": stream_format})
        dying = client.send(long, stream=True)
        os.kill(before[0], signal.SIGSTOP)
        # As long as its text is, one of its chunks is always there.
        until(lambda: pool.engine.replicas[0].requests)
    with only(pool, 1):
        living = client.send(client.build_request("POST", SPEECH, json=body), stream=True)
        os.kill(before[0], signal.SIGKILL)
        if stream_format == "audio":
            with pytest.raises(httpx.RemoteProtocolError):
                dying.read()
        else:
            last = json.loads(dying.read().decode().strip().rpartition("data: ")[2])
            assert last["type"] == "error" and last["error"]["code"] == "replica_died"
        assert living.read() == whole
    health = client.get("/health").json()
    assert health["replicas"]["small-bark"]["deaths"] == deaths + 1
    until(lambda: client.get("/health").json()["status"] == "ok")
    after = pids(pool)
    assert after[0] != before[0] and after[1] == before[1]
    with only(pool, 0):
        assert client.post(SPEECH, json=body).content == whole
    assert sum(metric(client.get("/metrics").text, "bark_accel_replica_deaths_total")) == deaths + 1


def test_killed_before_the_first_sound(pool, client):
    """An error object, not a broken connection."""
    with only(pool, 0), ThreadPoolExecutor(1) as asking:
        os.kill(pids(pool)[0], signal.SIGSTOP)
        answer = asking.submit(client.post, SPEECH, json=BODY)
        until(lambda: pool.engine.replicas[0].requests)
        os.kill(pids(pool)[0], signal.SIGKILL)
        refused = answer.result(20)
    assert refused.status_code == 500 and refused.json()["error"]["code"] == "replica_died"


def test_health_and_readiness_while_none_is_there(pool, client, monkeypatch):
    """Who waits in the line is said by the next processes."""
    fork = pool.engine._fork
    expected = client.post(SPEECH, json=BODY).content
    with ThreadPoolExecutor(1) as asking:
        gate = []
        monkeypatch.setattr(pool.engine, "_fork", lambda index: (until(lambda: gate), fork(index))[1])
        for pid in pids(pool):
            os.kill(pid, signal.SIGKILL)
        until(lambda: not any(replica.ready for replica in pool.engine.replicas))
        assert client.get("/ready").status_code == 503
        health = client.get("/health")
        assert health.status_code == 200 and health.json()["status"] == "degraded"
        assert health.json()["replicas"]["small-bark"]["ready"] == 0
        answer = asking.submit(client.post, SPEECH, json=BODY)
        until(lambda: pool.engine.requests)
        gate.append("open")
        assert answer.result(30).content == expected
    assert client.get("/ready").status_code == 200


def test_a_keeper_that_is_killed(pool, client):
    """Replicas speak without it; once one dies, all have another keeper."""
    keeper, deaths = pool.engine._keeper._process, [replica.deaths for replica in pool.engine.replicas]
    os.kill(keeper.pid, signal.SIGKILL)
    keeper.wait()
    assert client.post(SPEECH, json=BODY).status_code == 200 and client.get("/health").json()["status"] == "ok"
    os.kill(pids(pool)[1], signal.SIGKILL)
    until(lambda: client.get("/health").json()["status"] == "degraded")
    assert client.post(SPEECH, json=BODY).status_code == 200
    until(lambda: client.get("/health").json()["status"] == "ok")
    heir = pool.engine._keeper._process.pid
    assert heir != keeper.pid
    # The other one has said what it was given, and is started anew: nobody keeps a second copy of the weights.
    until(lambda: len(pids(pool)) == 2 and {parent(pid) for pid in pids(pool)} == {heir})
    until(lambda: client.get("/health").json()["status"] == "ok")
    assert [replica.deaths for replica in pool.engine.replicas] == [deaths[0], deaths[1] + 1]
    with only(pool, 1):
        assert client.post(SPEECH, json=BODY).status_code == 200


def test_a_replica_that_hangs(pool, client, monkeypatch):
    """It does not let a request go, so it is ended."""
    monkeypatch.setattr(replicated, "_HANGS_S", 0.3)
    before = pids(pool)
    with only(pool, 0):
        os.kill(before[0], signal.SIGSTOP)
        with pytest.raises(httpx.ReadTimeout):
            client.post(SPEECH, json=BODY, timeout=0.5)
    assert client.post(SPEECH, json=BODY).status_code == 200
    until(lambda: not runs(before[0]) and before[0] not in pids(pool))
    until(lambda: client.get("/health").json()["status"] == "ok")
    assert pids(pool)[1] == before[1]


def test_weights_are_shared(tmp_path, monkeypatch):
    """Two replicas of a model of some 300 MB, its int8 copies included: what each has for itself is a part of that."""
    build(SUNO, width=320, layers=4, heads=5).save_pretrained(tmp_path)
    # What lies in the working directory is not imported.
    (tmp_path / "torch.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    speaker = Speaker.load(ModelSpec("wide", str(tmp_path), Approximations("int8")), Settings(replicas=2, max_rows=1))
    try:
        engine = speaker._engine
        sound = [speaker.submit("one two", None, seed=1, policy="exact", semantic_max_new_tokens=30) for _ in range(2)]
        assert torch.equal(sound[0].result(60), sound[1].result(60))
        assert engine.weight_bytes > 200e6 and speaker.nbytes == engine.weight_bytes + engine.cache_bytes
        for replica in engine.replicas:
            lines = Path(f"/proc/{replica.link.pid}/smaps_rollup").read_text().splitlines()
            size = {line.split()[0]: int(line.split()[1]) * 1024 for line in lines[1:]}
            assert size["Rss:"] > engine.weight_bytes
            own = size["Private_Dirty:"] + size["Private_Clean:"] - engine.cache_bytes / 2
            assert own < engine.weight_bytes / 3
            # A keeper and two replicas.
            assert abs(replica.nbytes - size["Pss:"]) < 10e6 and replica.nbytes < engine.weight_bytes * 0.75
    finally:
        speaker.close()


def test_nothing_is_left_of_a_model_that_is_unloaded():
    settings = Settings(
        models=(ModelSpec("small-bark"), ModelSpec("int8", str(small_bark_path()), Approximations("int8"))),
        max_memory_bytes=1,
        replicas=2,
    )
    with running(settings) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        first = [*pids(server), server.engine._keeper._process.pid]
        assert all(map(runs, first))
        assert client.post(SPEECH, json={**BODY, "model": "int8"}).status_code == 200
        assert not any(map(runs, first))
        assert client.get("/health").json()["replicas"].keys() == {"int8"}
        second = [*pids(server), server.engine._keeper._process.pid]
    assert not any(map(runs, second))


def test_a_model_that_cannot_be_loaded(tmp_path):
    settings = Settings(models=(ModelSpec("gone", str(tmp_path)),), replicas=2)
    with running(settings, ready=False) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        until(lambda: server.state.failure)
        assert client.get("/ready").status_code == 503 and str(tmp_path) in client.get("/ready").text


def test_a_replica_that_dies_at_its_birth(monkeypatch):
    """It is no server that would never be ready, and no process is left."""
    attend = replicated.ReplicatedEngine._attend
    links = []

    def kill(self, replica, link, keeper):
        links.append(link)
        if replica.index:
            os.kill(link.pid, signal.SIGKILL)
        attend(self, replica, link, keeper)

    monkeypatch.setattr(replicated.ReplicatedEngine, "_attend", kill)
    with pytest.raises(OSError, match="ended before it had spoken"):
        Speaker.load(ModelSpec("small-bark"), Settings(replicas=2))
    assert links and not any(runs(link.pid) for link in links)
