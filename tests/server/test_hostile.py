"""Requests that are none, on a bare socket, and what is left in the log."""

from __future__ import annotations

import json
import logging
import socket
import time

import httpx
import pytest
from support.servers import running, until

from bark_accel.server.settings import Settings, read_keys

BODY = {"model": "tts-1", "voice": "alloy", "input": "Yes", "response_format": "pcm"}
POST = b"POST /v1/audio/speech HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def impatient():
    with running(Settings(deadline_s=1.5)) as server:
        yield server


def answer_to(server, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """Send parts, and return what comes until the server closes."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=8) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))
        except ConnectionError:  # closed with something unread
            return b"HTTP/1.1 400"


def test_a_request_that_does_not_come_ends(impatient):
    """Neither a head nor a body may trickle in for ever, nor the second request of a connection."""
    whole = json.dumps(BODY).encode()
    request = POST + b"content-length: %d\r\n\r\n" % len(whole) + whole
    assert not answer_to(impatient, b"")
    assert not answer_to(impatient, POST)
    assert not answer_to(impatient, POST + b"content-length: 100\r\n\r\n", *[b"{"] * 30, pause_s=0.1)[20:]
    assert answer_to(impatient, request, POST).startswith(b"HTTP/1.1 200")
    # Who has sent one is not cut off while it is answered, and may ask again.
    with httpx.Client(base_url=impatient.url) as client:
        for _ in range(3):
            assert client.post("/v1/audio/speech", json=BODY).status_code == 200
            time.sleep(0.8)


@pytest.mark.parametrize(
    "head",
    [b"x: " + b"a" * 200_000, b"".join(b"x%d: a\r\n" % i for i in range(20_000)), b"content-length: -5", b"\x16\x03"],
    ids=["long", "many", "negative", "tls"],
)
def test_heads_are_bounded(impatient, head):
    assert answer_to(impatient, POST + head + b"\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_a_stream_that_breaks_off_is_no_bug(impatient, caplog):
    """One line in the log, and its status in the figures."""
    long = {**BODY, "input": "Hello, my dog is cute. " * 150}
    before = httpx.get(f"{impatient.url}/metrics").text.count('status="504"')
    with caplog.at_level(logging.INFO), pytest.raises(httpx.RemoteProtocolError):
        httpx.post(f"{impatient.url}/v1/audio/speech", json=long, timeout=20)
    until(lambda: httpx.get(f"{impatient.url}/metrics").text.count('status="504"') > before)
    assert "Traceback" not in caplog.text


def test_fields_are_named_as_clients_know_them(impatient):
    answer = httpx.post(f"{impatient.url}/v1/audio/speech", json={**BODY, "voice": "a" * 1000})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "voice"


@pytest.mark.parametrize("content", ["", "\n \n", "schlüssel\n", "two words\n"])
def test_keys_that_nobody_could_send(tmp_path, content):
    (tmp_path / "keys").write_text(content)
    with pytest.raises(ValueError, match="api-key-file: expected"):
        read_keys(tmp_path / "keys")
