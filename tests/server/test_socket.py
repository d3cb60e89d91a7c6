"""Text in pieces over a WebSocket, with a real client."""

from __future__ import annotations

import json
from functools import partial

import httpx
import numpy as np
import pytest
from support.servers import running, until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from bark_accel.server.errors import ApiError
from bark_accel.server.settings import Settings
from bark_accel.server.spoken_text import Sentences

PATH = "/v1/audio/speech/stream"
START = {"type": "start", "model": "tts-1", "voice": "alloy", "response_format": "pcm", "seed": 5}
TOKENS = ["Hel", "lo, my ", "dog is cute", ". Good", " morning, my cat", " is big."]


def opened(server, **options):
    return connect(server.url.replace("http", "ws") + PATH, **options)


def send(socket, *messages) -> None:
    for message in messages:
        socket.send(json.dumps({"type": "text", "text": message} if isinstance(message, str) else message))


def received(socket) -> tuple[list[dict], bytes]:
    """Messages and sound until the server closes."""
    messages, sound = [], b""
    try:
        while True:
            part = socket.recv(timeout=30)
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
        while not isinstance(socket.recv(timeout=30), bytes):
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
    with opened(server) as socket:
        send(socket, START, "Hello, my dog is cute. " * 50)
        while not isinstance(socket.recv(timeout=30), bytes):
            pass
    until(lambda: not server.engine.requests and not any(s.users for s in server.state.models.loaded()), 2)


def test_a_sentence_has_a_deadline():
    with running(Settings(deadline_s=1.5)) as server:
        # The second is longer than it may take.
        with opened(server) as socket:
            send(socket, START, "Hello. ", "Hello, my dog is cute, " * 100, {"type": "end"})
            messages, sound = received(socket)
        assert messages[-1]["error"]["code"] == "deadline_exceeded" and socket.close_code == 1011 and sound
        # So has a client that says nothing, before and after its start.
        for sent in ([], [START]):
            with opened(server) as socket:
                send(socket, *sent)
                assert received(socket)[0][-1]["error"]["code"] == "deadline_exceeded"
        until(lambda: not server.engine.requests and not any(s.users for s in server.state.models.loaded()))


def test_who_reads_nothing_is_let_go():
    with running(Settings(deadline_s=3.0)) as server, opened(server, max_queue=1) as socket:
        send(socket, {**START, "response_format": "wav", "speed": 0.25}, "Hello, my dog is cute. " * 150)
        until(lambda: server.state.sessions)
        until(lambda: not server.state.sessions, 40)
        assert not any(s.users for s in server.state.models.loaded())


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
    with running(Settings()) as server, opened(server) as socket, opened(server) as waiting:
        send(socket, START, *TOKENS, " Yes")
        while not isinstance(socket.recv(timeout=30), bytes):
            pass
        server.stop()
        messages, _ = received(socket)
        said = [message["text"] for message in messages if message["type"] == "speech.sentence"]
        assert said == ["Good morning, my cat is big."] and messages[-1]["error"]["code"] == "shutting_down"
        assert received(waiting)[0][-1]["error"]["code"] == "shutting_down"


def test_a_full_line_says_so():
    with running(Settings(max_rows=1, max_queued=0)) as server:
        long = {"input": "Hello, my dog is cute. " * 60, "response_format": "wav", "speed": 0.25}
        with (
            httpx.stream("POST", f"{server.url}/v1/audio/speech", json=long) as first,
            opened(server) as socket,
        ):
            # Kept: a generator that is thrown away closes the connection.
            pieces = first.iter_raw()
            next(pieces)
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
