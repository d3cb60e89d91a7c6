"""The server on a real local Ray Serve: the same bytes, streamed, and a second replica under load."""

from __future__ import annotations

import os
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("ray.serve", reason="Ray Serve is not installed", exc_type=ImportError)
# ruff: isort: split
import httpx
import openai
from ray import serve as ray_serve
from starlette.testclient import TestClient
from support.servers import running as running_server
from support.waiting import LIMIT_S, until

from bark_accel.approximations import Approximations
from bark_accel.server.app import create_app
from bark_accel.server.ray_serve import SpeechArgs, _ready_when_started, speech
from bark_accel.server.settings import Settings

TEXT = "Hello, my dog is cute."
AT_ONCE = {"upscale_delay_s": 0.0, "metrics_interval_s": 0.2, "look_back_period_s": 0.5, "downscale_delay_s": 600.0}
# No more than two requests are under way at once before the load, which asks for six.
ARGS = SpeechArgs(
    num_cpus=0.5, max_replicas=2, target_ongoing_requests=3, autoscaling=AT_ONCE, max_rows=2, max_queued=64
)


def free_port() -> int:
    """One below those that the system gives to whoever asks for any: it stays free until Serve takes it."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise OSError("no port is free")


@pytest.fixture(scope="module")
def url(cluster):
    port = free_port()
    try:
        ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
        ray_serve.run(speech(ARGS))
        yield f"http://127.0.0.1:{port}"
    finally:
        ray_serve.shutdown()


@pytest.fixture
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def asked(seed=3, **options):
    given = {"model": "tts-1", "voice": "alloy", "input": TEXT, "response_format": "pcm", **options}
    return {**given, "extra_body": {"seed": seed}}


def running() -> int:
    states = ray_serve.status().applications["default"].deployments["speech"].replica_states
    return states.get("RUNNING", 0)


def test_the_same_bytes_as_without_serve(client, url):
    with running_server(Settings()) as server:
        plain = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        expected = plain.audio.speech.create(**asked()).content
    assert len(expected) > 24_000 and client.audio.speech.create(**asked()).content == expected
    assert httpx.get(f"{url}/ready", timeout=LIMIT_S).status_code == 200
    assert "<html" in httpx.get(url, timeout=LIMIT_S).text


def test_sound_comes_before_the_end(client, url):
    """Its first bytes are here while the replica still generates the rest."""

    def rows_in_use() -> float:
        figures = httpx.get(f"{url}/metrics", timeout=LIMIT_S).text  # of any replica
        return float(re.search(r"^bark_accel_rows_in_use{.*} (.*)$", figures, re.MULTILINE)[1])

    with client.audio.speech.with_streaming_response.create(**asked(input=f"{TEXT} " * 40)) as response:
        pieces = response.iter_bytes()
        first = len(next(pieces))
        until(rows_in_use)
        rest = sum(map(len, pieces))
    assert first < rest / 4


def test_errors_are_those_of_the_server(client):
    with pytest.raises(openai.BadRequestError, match="does not know"):
        client.audio.speech.create(**asked(input="quux"))


def test_a_second_replica_under_load(client):
    """Each request of the load has the bytes of its seed, whichever replica says it."""
    alone = [client.audio.speech.create(**asked(seed)).content for seed in range(2)]
    assert running() == 1
    stop = threading.Event()

    def load(seed):
        while not stop.is_set():
            assert client.audio.speech.create(**asked(seed)).content == alone[seed]

    with ThreadPoolExecutor(6) as pool:
        loads = [pool.submit(load, number % 2) for number in range(6)]
        try:
            until(lambda: running() == 2 or any(one.done() for one in loads), every_s=0.2)
        finally:
            stop.set()
        for one in loads:
            one.result()
    for _ in range(4):
        assert client.audio.speech.create(**asked(1)).content == alone[1]


def test_approximations_are_arguments():
    given = Approximations("int8", "int8", fit_windows=True, long_coarse_windows=True)
    (model,) = SpeechArgs(**given.arguments()).settings().models
    assert model.approximations == given


def test_a_replica_starts_once_its_model_has_spoken(tmp_path):
    """And does not where there is none, with the reason."""
    with TestClient(_ready_when_started(create_app(SpeechArgs().settings()))) as started:
        assert started.get("/ready").status_code == 200
    missing = SpeechArgs(model=f"lacking={tmp_path / 'none'}").settings()
    with pytest.raises(RuntimeError, match="lacking"), TestClient(_ready_when_started(create_app(missing))):
        pass


@pytest.mark.parametrize(
    "given, message",
    [({"model": "a:b", "weights": "int7"}, "int7"), ({"rows": 3}, "rows"), ({"max_rows": 0}, "max_rows")],
)
def test_bad_arguments_are_told_before_anything_is_deployed(given, message):
    with pytest.raises(ValueError, match=message):
        speech(SpeechArgs.model_validate(given))
