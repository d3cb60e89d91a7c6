"""Processes of replicas: their cores, their memory, how they end and who takes their place."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from support.bark_models import SUNO, build
from support.replicas import client_of, metric, only, parent, pids, runs, stopped
from support.servers import BODY, LONG, SPEECH, listener, running
from support.waiting import LIMIT_S, until

from bark_accel import small_bark_path
from bark_accel.approximations import Approximations
from bark_accel.server.replicas import engine as replicated
from bark_accel.server.replicas.messages import Ended
from bark_accel.server.settings import ModelSpec, Settings
from bark_accel.server.speaker import Speaker

if len(os.sched_getaffinity(0)) < 2:
    pytest.skip("needs two CPUs", allow_module_level=True)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Whatever dies is started anew without a pause."""
    monkeypatch.setattr(replicated, "_YOUNG_S", 0.0)


@pytest.fixture
def client(pool):
    with client_of(pool) as client:
        yield client


def test_each_is_pinned_to_its_own_cores(pool, client):
    sets = [os.sched_getaffinity(pid) for pid in pids(pool)]
    assert [len(cpus) for cpus in sets] == [1, 1] and not sets[0] & sets[1]
    assert sets[0] | sets[1] <= os.sched_getaffinity(0)
    for pid, cpus in zip(pids(pool), sets, strict=True):
        threads = [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
        assert len(threads) > 2 and all(os.sched_getaffinity(thread) == cpus for thread in threads)


@pytest.mark.parametrize("stream_format", ["audio", "sse"])
def test_a_replica_that_is_killed(pool, client, stream_format, monkeypatch):
    """Its stream breaks off; the other one's goes on, and another process takes its place."""
    take = pool.engine._take
    body = {**BODY, "input": "Hello, my dog is cute. " * 10}
    whole = client.post(SPEECH, json=body).content
    before = pids(pool)
    deaths = sum(replica.deaths for replica in pool.engine.replicas)
    # Its first chunk is under way up to its death.
    ended = lambda one, said: isinstance(said, Ended) and one.link.pid == before[0]  # noqa: E731
    monkeypatch.setattr(pool.engine, "_take", lambda one, said: ended(one, said) or take(one, said))
    with only(pool, 0):
        long = client.build_request("POST", SPEECH, json={**LONG, "stream_format": stream_format})
        dying = client.send(long, stream=True)
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
        refused = answer.result(LIMIT_S)
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
        assert answer.result(LIMIT_S).content == expected
    assert client.get("/ready").status_code == 200


def test_a_keeper_that_is_killed(pool, client, monkeypatch):
    """Replicas speak without it; once one dies, all have another keeper."""
    fork, gate = pool.engine._fork, []
    monkeypatch.setattr(pool.engine, "_fork", lambda index: (until(lambda: gate), fork(index))[1])
    keeper, deaths = pool.engine._keeper._process, [replica.deaths for replica in pool.engine.replicas]
    os.kill(keeper.pid, signal.SIGKILL)
    keeper.wait()
    assert client.post(SPEECH, json=BODY).status_code == 200 and client.get("/health").json()["status"] == "ok"
    os.kill(pids(pool)[1], signal.SIGKILL)
    until(lambda: client.get("/health").json()["status"] == "degraded")
    assert client.post(SPEECH, json=BODY).status_code == 200
    gate.append("open")
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
    with only(pool, 0), stopped(before[:1]):
        with listener(pool, BODY):
            until(lambda: pool.engine.replicas[0].requests)
        until(lambda: not runs(before[0]))
    assert client.post(SPEECH, json=BODY).status_code == 200
    until(lambda: client.get("/health").json()["status"] == "ok")
    assert pids(pool)[0] != before[0] and pids(pool)[1] == before[1]


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
        assert torch.equal(sound[0].result(LIMIT_S), sound[1].result(LIMIT_S))
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
    with running(settings) as server, server.client() as client:
        first = [*pids(server), server.engine._keeper._process.pid]
        assert all(map(runs, first))
        assert client.post(SPEECH, json={**BODY, "model": "int8"}).status_code == 200
        assert not any(map(runs, first))
        assert client.get("/health").json()["replicas"].keys() == {"int8"}
        second = [*pids(server), server.engine._keeper._process.pid]
    assert not any(map(runs, second))


def test_a_model_that_cannot_be_loaded(tmp_path):
    settings = Settings(models=(ModelSpec("gone", str(tmp_path)),), replicas=2)
    with running(settings, ready=False) as server, server.client() as client:
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
