"""Requests that are none, on a bare socket, and what is left in the log."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterable

import httpx
import pytest
from support.servers import LONG, SPEECH
from support.waiting import LIMIT_S, until

from bark_accel.server import speech
from bark_accel.server.settings import read_keys

BODY = {"model": "tts-1", "voice": "alloy", "input": "Yes", "response_format": "pcm"}
POST = b"POST /v1/audio/speech HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.fixture
def impatient(server, monkeypatch):
    """A request has half a second to come."""
    protocol = server.server.config.http_protocol_class
    assert protocol.seconds == server.state.settings.deadline_s
    monkeypatch.setattr(protocol, "seconds", 0.5)
    return server


def answer_to(server, parts: Iterable[bytes], pause_s: float = 0.0) -> bytes:
    """Send parts, and return what comes until the server closes."""
    with socket.create_connection(server.address, timeout=LIMIT_S) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))
        except ConnectionError:  # closed with something unread
            return b"HTTP/1.1 400"


@pytest.mark.parametrize("begun", [b"", POST])
def test_a_request_that_does_not_come_ends(impatient, begun):
    assert not answer_to(impatient, [begun])


def test_a_body_may_not_trickle_in_for_ever(impatient):
    parts = iter([POST + b"content-length: 10000\r\n\r\n", *[b"{"] * 3000])
    answer_to(impatient, parts, pause_s=0.02)
    assert next(parts, None) is not None, "it was cut off before its end"


def test_nor_the_second_request_of_a_connection(server, monkeypatch):
    """Which has as much time, once the first one's answer is there."""
    whole = json.dumps(BODY).encode()
    with socket.create_connection(server.address, timeout=LIMIT_S) as connection:
        connection.sendall(POST + b"content-length: %d\r\n\r\n" % len(whole) + whole)
        answer = b""
        while not answer.endswith(b"\r\n0\r\n\r\n"):
            piece = connection.recv(1 << 16)
            assert piece
            answer += piece
        assert answer.startswith(b"HTTP/1.1 200")
        monkeypatch.setattr(server.server.config.http_protocol_class, "seconds", 0.5)
        connection.sendall(POST)
        assert connection.recv(1) == b""


def test_who_has_sent_a_request_is_not_cut_off_while_it_is_answered(server, monkeypatch):
    """And may ask again."""
    until(lambda: not server.server.server_state.connections)
    timers, make_plan = [], speech.make_plan

    def note(*given):
        (connection,) = server.server.server_state.connections
        timers.append(connection._timer)
        return make_plan(*given)

    monkeypatch.setattr(speech, "make_plan", note)
    with server.client() as client:
        assert [client.post(SPEECH, json=BODY).status_code for _ in range(3)] == [200] * 3
    assert timers == [None] * 3


@pytest.mark.parametrize(
    "head",
    [b"x: " + b"a" * 200_000, b"".join(b"x%d: a\r\n" % i for i in range(20_000)), b"content-length: -5", b"\x16\x03"],
    ids=["long", "many", "negative", "tls"],
)
def test_heads_are_bounded(server, head):
    assert answer_to(server, [POST + head + b"\r\n\r\n"]).startswith(b"HTTP/1.1 400")


def test_a_stream_that_breaks_off_is_no_bug(server, deadlines, caplog):
    """One line in the log, and its status in the figures."""
    before = server.get("/metrics").text.count('status="504"')
    with caplog.at_level(logging.INFO), server.client() as client, client.stream("POST", SPEECH, json=LONG) as answer:
        pieces = answer.iter_bytes()
        next(pieces)
        with deadlines.passed(), pytest.raises(httpx.RemoteProtocolError):
            list(pieces)
        until(lambda: server.get("/metrics").text.count('status="504"') > before)
    assert "Traceback" not in caplog.text


def test_fields_are_named_as_clients_know_them(server):
    answer = server.post(SPEECH, json={**BODY, "voice": "a" * 1000})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "voice"


@pytest.mark.parametrize("content", ["", "\n \n", "schlüssel\n", "two words\n"])
def test_keys_that_nobody_could_send(tmp_path, content):
    (tmp_path / "keys").write_text(content)
    with pytest.raises(ValueError, match="api-key-file: expected"):
        read_keys(tmp_path / "keys")
