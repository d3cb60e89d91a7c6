"""Other sites' pages, which a browser lets post forms to a server on loopback."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from support.servers import running
from support.waiting import LIMIT_S
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from bark_accel import small_bark_path
from bark_accel.server.access import is_foreign
from bark_accel.server.settings import Settings

VOICE = (small_bark_path() / "speaker_embeddings" / "rms.npz").read_bytes()
FOREIGN = ({"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"})


@pytest.fixture(scope="module")
def client():
    settings = Settings(cors_origins=("https://good.example",))
    with running(settings) as server, server.client() as client:
        yield client


def upload(client, name: str, headers: dict) -> int:
    form = {"data": {"name": name}, "files": {"file": ("v.npz", VOICE)}}
    return client.post("/v1/audio/voices", **form, headers=headers).status_code


@pytest.mark.parametrize("headers", FOREIGN, ids=["other", "null", "fetch"])
def test_they_change_nothing_and_say_nothing(client, headers):
    assert upload(client, "theirs", headers) == 403
    assert client.delete("/v1/audio/voices/mine", headers=headers).status_code == 403
    answer = client.post("/v1/audio/speech", json={"model": "tts-1", "input": "Hello"}, headers=headers)
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "foreign_origin"
    assert client.get("/v1/models", headers=headers).status_code == 200
    # It would be loaded.
    assert client.get("/v1/audio/voices?model=tts-1", headers=headers).status_code == 403
    assert "theirs" not in client.get("/v1/audio/voices").text


@pytest.mark.parametrize("origin", ["its own", "https://good.example"])
def test_those_that_may(client, origin):
    own = str(client.base_url).rstrip("/")
    headers = {"origin": own if origin == "its own" else origin, "sec-fetch-site": "cross-site"}
    assert upload(client, "mine", headers) == 201
    assert client.delete("/v1/audio/voices/mine", headers=headers).status_code == 200


@pytest.mark.parametrize("origin", ["https://good.example", "https://other.example"])
def test_behind_a_proxy_that_does_not_hand_the_name_on(client, origin):
    """Its page's origin is not the name in `Host`: it is given with --cors-origin, for routes and WebSockets alike."""
    allowed = origin == "https://good.example"
    assert upload(client, "mine", {"origin": origin}) == (201 if allowed else 403)
    if allowed:
        client.delete("/v1/audio/voices/mine")
    url = str(client.base_url).replace("http", "ws", 1).rstrip("/") + "/v1/audio/speech/stream"
    with (
        nullcontext() if allowed else pytest.raises(InvalidStatus, match="403"),
        connect(url, origin=origin, open_timeout=LIMIT_S),
    ):
        pass


@pytest.mark.parametrize(
    ("headers", "origins", "foreign"),
    [
        ({}, (), False),
        ({"host": "a:8000", "origin": "http://a:8000"}, (), False),
        ({"host": "a:8000", "origin": "http://a:3000"}, (), True),
        ({"host": "a:8000", "origin": "http://a:3000"}, ("*",), False),
        # A proxy that does not hand the name on.
        ({"host": "127.0.0.1", "origin": "https://a", "sec-fetch-site": "same-origin"}, (), False),
        ({"host": "a", "sec-fetch-site": "none"}, (), False),
        ({"host": "a", "origin": "http://["}, (), True),
    ],
)
def test_is_foreign(headers, origins, foreign):
    assert is_foreign(headers, origins) == foreign
