"""Text in pieces over a WebSocket, with a real client."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from support.servers import LONG, leaving, listener, narrow_connection, running
from support.waiting import LIMIT_S, until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from bark_accel.server.errors import ApiError
from bark_accel.server.settings import Settings
from bark_accel.server.spoken_text import Sentences

PATH = "/v1/audio/speech/stream"
START = {"type": "start", "model": "tts-1", "voice": "alloy", "response_format": "pcm", "seed": 5}
TOKENS = ["Hel", "lo, my ", "dog is cute", ". Good", " morning, my cat", " is big."]


def opened(server, **options):
    return connect(server.url.replace("http", "ws") + PATH, open_timeout=LIMIT_S, ping_interval=None, **options)


def send(socket, *messages) -> None:
    for message in messages:
        socket.send(json.dumps({"type": "text", "text": message} if isinstance(message, str) else message))


def received(socket) -> tuple[list[dict], bytes]:
    """Messages and sound until the server closes."""
    messages, sound = [], b""
    try:
        while True:
            part = socket.recv(timeout=LIMIT_S)
            if isinstance(part, bytes):
                sound += part
            else:
                messages.append(json.loads(part))
    except ConnectionClosed:
        return messages, sound


def test_sentences_are_said_one_by_one_and_again(server):
    heard = []
    for tokens in (TOKENS, ["".join(TOKENS)]):
        with opened(server) as socket:
            send(socket, START, *tokens, {"type": "end"})
            messages, sound = received(socket)
        kinds = [message["type"] for message in messages]
        assert kinds == ["speech.started", "speech.sentence", "speech.sentence", "speech.audio.done"]
        said = [m["text"] for m in messages if m["type"] == "speech.sentence"]
        assert said == ["Hello, my dog is cute.", "Good morning, my cat is big."]
        heard.append(sound)
    assert heard[0] == heard[1] and np.abs(np.frombuffer(heard[0], "<i2")).max() > 1000
    assert len(heard[0]) > 3 * 2 * 24_000


def test_sound_comes_before_the_text_ends(server):
    with opened(server) as socket:
        send(socket, START, *TOKENS)
        while not isinstance(socket.recv(timeout=LIMIT_S), bytes):
            pass
        send(socket, " Yes", {"type": "flush"}, "No", {"type": "end"})
        said = [m["text"] for m in received(socket)[0] if m["type"] == "speech.sentence"]
    assert said == ["Good morning, my cat is big.", "Yes", "No"]


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        (["Hello"], None),
        ([{**START, "speed": 9}], "invalid_value"),
        ([{**START, "model": "gpt-2"}], "model_not_found"),
        ([{**START, "voice": "nobody"}], "voice_not_found"),
        ([START, "Hello, zebra", {"type": "end"}], "unknown_words"),
        ([START, START], None),
        ([START, {"type": "shout"}], "invalid_value"),
        ([[1]], "invalid_value"),
        ([START, "hello " * 600, "hello " * 600], None),
    ],
)
def test_errors_come_before_the_close(server, messages, code):
    with opened(server) as socket:
        send(socket, *messages)
        answers, sound = received(socket)
    assert answers[-1]["type"] == "error" and answers[-1]["error"]["code"] == code and not sound
    assert socket.close_code == 1008


def test_a_client_that_leaves_frees_its_row(server):
    with leaving(server, most_s=100), opened(server) as socket:
        send(socket, START, "Hello, my dog is cute. " * 120)
        while not isinstance(socket.recv(timeout=LIMIT_S), bytes):
            pass


def test_a_sentence_has_a_deadline(server, deadlines):
    """The second one, which is long."""
    with opened(server) as socket:
        send(socket, START, "Hello. ", "Hello, my dog is cute, " * 100, {"type": "end"})
        while "my dog" not in str(socket.recv(timeout=LIMIT_S)):
            pass
        assert isinstance(socket.recv(timeout=LIMIT_S), bytes)
        with deadlines.passed():
            messages, _ = received(socket)
    assert messages[-1]["error"]["code"] == "deadline_exceeded" and socket.close_code == 1011
    assert deadlines.given_s == {server.state.settings.deadline_s}
    until(lambda: server.idle)


@pytest.mark.parametrize("sent", [[], [START]], ids=["before its start", "after it"])
def test_a_client_that_says_nothing_has_a_deadline(server, deadlines, sent):
    with opened(server) as socket:
        send(socket, *sent)
        for _ in sent:
            assert json.loads(socket.recv(timeout=LIMIT_S))["type"] == "speech.started"
        until(lambda: deadlines.running == 1)
        with deadlines.passed():
            assert received(socket)[0][-1]["error"]["code"] == "deadline_exceeded"
    until(lambda: server.idle)


def test_who_reads_nothing_is_let_go():
    with (
        running(Settings(deadline_s=3.0)) as server,
        narrow_connection(server.address) as narrow,
        opened(server, max_queue=1, sock=narrow, close_timeout=1) as socket,
    ):
        send(socket, {**START, "response_format": "wav", "speed": 0.25}, "Hello, my dog is cute. " * 150)
        until(lambda: server.state.sessions)
        until(lambda: not server.state.sessions)
        assert not server.users


def test_no_sound_is_told(server, monkeypatch):
    (speaker,) = server.state.models.loaded()
    monkeypatch.setattr(speaker, "submit", partial(speaker.submit, min_eos_p=1e-30))
    with opened(server) as socket:
        send(socket, START, "Hello.", {"type": "end"})
        messages, sound = received(socket)
    assert messages[-1]["error"]["code"] == "no_sound" and socket.close_code == 1011 and not sound


@pytest.mark.parametrize("sent", [[], [START]], ids=["first", "later"])
def test_binary_messages_are_no_text(server, sent):
    with opened(server) as socket:
        send(socket, *sent)
        socket.send(b"\x00")
        messages, _ = received(socket)
    assert messages[-1]["error"]["code"] == "invalid_value" and socket.close_code == 1008


def test_the_end_of_the_server_lets_sentences_finish():
    settings = Settings(drain_s=LIMIT_S)
    with running(settings) as server, opened(server) as socket, opened(server) as waiting:
        send(socket, START, *TOKENS, " Yes")
        while not isinstance(socket.recv(timeout=LIMIT_S), bytes):
            pass
        server.stop()
        messages, _ = received(socket)
        said = [message["text"] for message in messages if message["type"] == "speech.sentence"]
        assert said == ["Good morning, my cat is big."] and messages[-1]["error"]["code"] == "shutting_down"
        assert received(waiting)[0][-1]["error"]["code"] == "shutting_down"


def test_a_full_line_says_so():
    with running(Settings(max_rows=1, max_queued=0)) as server:
        with listener(server, {**LONG, "response_format": "wav", "speed": 0.25}) as first, opened(server) as socket:
            assert first.recv(1)
            send(socket, START, "Hello.", {"type": "end"})
            answers, _ = received(socket)
        assert answers[-1]["error"]["type"] == "rate_limit_exceeded" and socket.close_code == 1013


def test_keys_and_other_sites():
    with running(Settings(api_keys=("secret",)), ready=False) as server:
        host = server.url.removeprefix("http://")
        for options in (
            {},
            {"additional_headers": {"authorization": "Bearer wrong"}},
            {"additional_headers": {"authorization": "Bearer secret"}, "origin": "https://evil.example"},
        ):
            with pytest.raises(InvalidStatus, match="403"):
                opened(server, **options)
        with opened(server, additional_headers={"authorization": "Bearer secret"}, origin=f"http://{host}"):
            pass
        with opened(server, subprotocols=["realtime", "openai-insecure-api-key.secret"]) as socket:
            assert socket.subprotocol == "realtime"


def test_a_sentence_waits_for_the_next():
    sentences = Sentences("en")
    assert sentences.add("It is 3.") == [] and sentences.add("5 of them. Y") == ["It is 3.5 of them. "]
    assert sentences.rest() == ["Y"] and sentences.rest() == []
    assert sentences.add(" ... ") == sentences.rest() == []
    for long in ("a " * 3000, "a " * 3000 + "b. And on"):
        with pytest.raises(ApiError, match="expected a sentence within 4096 characters"):
            Sentences("en").add(long)
