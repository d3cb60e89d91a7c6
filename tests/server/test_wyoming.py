"""Home Assistant's protocol, with the client of the library over a real socket."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
from contextlib import asynccontextmanager
from functools import wraps

import numpy as np
import pytest
from support.servers import SPEECH, is_held_back, leaving, narrow_connection, running
from support.waiting import LIMIT_S, until

pytest.importorskip("wyoming", reason="the extra `serve` is not installed")

from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
    SynthesizeVoice,
)

from bark_accel.server import speech, spoken_text
from bark_accel.server.settings import Settings

TEXT = "Hello, my dog is cute."
TOKENS = ["Hel", "lo, my ", "dog is cute", ". Good", " morning, my cat", " is big."]
LONG = "Hello, my dog is cute. " * 150
SLT = SynthesizeVoice(name="slt")


@pytest.fixture(scope="module")
def server():
    with running(Settings(), wyoming=True) as server:
        yield server


@pytest.fixture
def seeds(monkeypatch):
    """Requests without a seed, as all of Wyoming's are, have this one."""
    for module in (speech, spoken_text):
        monkeypatch.setattr(module.secrets, "randbits", lambda bits: 5)


@asynccontextmanager
async def connected(server):
    async with AsyncTcpClient("127.0.0.1", server.wyoming_port, read_timeout=LIMIT_S) as client:
        yield client


def in_a_loop(test):
    """Run a coroutine function as a test."""

    @wraps(test)
    def run(*args, **kwargs):
        asyncio.run(test(*args, **kwargs))

    return run


async def send(client, *events) -> None:
    for event in events:
        await client.write_event(event.event() if not isinstance(event, Event) else event)


async def heard(client, last=AudioStop) -> list[Event]:
    """Events up to the last, an error or the end of the connection (None)."""
    events = []
    while not events or not (events[-1] is None or last.is_type(events[-1].type) or Error.is_type(events[-1].type)):
        events.append(await client.read_event())
    return events


def types(events: list[Event]) -> list[str]:
    """Types of events, chunks of sound once."""
    names = [event.type for event in events]
    return [name for i, name in enumerate(names) if name != "audio-chunk" or names[i - 1] != name]


def sound(events: list[Event]) -> bytes:
    return b"".join(AudioChunk.from_event(event).audio for event in events if AudioChunk.is_type(event.type))


def asked_over_http(server) -> bytes:
    given = {"model": "tts-1", "voice": "slt", "input": TEXT, "response_format": "pcm", "seed": 5}
    return server.post(SPEECH, json=given).content


@in_a_loop
async def test_it_describes_its_voices(server):
    async with connected(server) as client:
        await send(client, Describe())
        (program,) = Info.from_event(await client.read_event()).tts
    assert program.installed and program.supports_synthesize_streaming and program.name == "small-bark"
    assert {voice.name: voice.languages for voice in program.voices} == {"rms": ["en"], "slt": ["en"]}
    assert all(voice.installed for voice in program.voices)


@in_a_loop
async def test_an_uploaded_voice_is_described_and_speaks(server):
    from bark_accel import small_bark_path

    file = {"file": ("v.npz", (small_bark_path() / "speaker_embeddings" / "rms.npz").read_bytes())}
    assert server.post("/v1/audio/voices", data={"name": "mine"}, files=file).status_code == 201
    async with connected(server) as client:
        await send(client, Describe())
        (program,) = Info.from_event(await client.read_event()).tts
        assert "mine" in [voice.name for voice in program.voices]
        await send(client, Synthesize("Yes", voice=SynthesizeVoice(name="mine")))
        assert types(await heard(client)) == ["audio-start", "audio-chunk", "audio-stop"]
    with server.client() as client:
        client.delete("/v1/audio/voices/mine")


@in_a_loop
async def test_a_text_is_what_http_says(server, seeds):
    """By name, by language, and as a client says that names no voice."""
    said = asked_over_http(server)
    async with connected(server) as client:
        for voice in (SLT, SynthesizeVoice(language="en-US"), None):
            await send(client, Synthesize(TEXT, voice=voice))
            events = await heard(client)
            assert types(events) == ["audio-start", "audio-chunk", "audio-stop"]
            start = AudioStart.from_event(events[0])
            assert (start.rate, start.width, start.channels) == (24_000, 2, 1)
            assert sound(events) == said


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
@in_a_loop
async def test_replicas_say_the_same(server, seeds):
    """Several connections at once, whole texts and streams, over processes of one thread each."""

    async def asked(server, streamed: bool) -> bytes:
        async with connected(server) as client:
            if streamed:
                await send(client, SynthesizeStart(voice=SLT), SynthesizeChunk(TEXT), SynthesizeStop())
                return sound(await heard(client, SynthesizeStopped))
            await send(client, Synthesize(TEXT, voice=SLT))
            return sound(await heard(client))

    said = [await asked(server, streamed) for streamed in (False, True)] * 2
    with running(Settings(replicas=2, max_rows=1), wyoming=True) as pool:
        assert await asyncio.gather(*(asked(pool, streamed) for streamed in (False, True) * 2)) == said
        until(lambda: pool.idle)


@in_a_loop
async def test_a_stream_is_said_by_sentence(server, seeds):
    said = []
    for tokens in (TOKENS, ["".join(TOKENS)]):
        async with connected(server) as client:
            chunks = [SynthesizeChunk(token) for token in tokens]
            whole = Synthesize("".join(TOKENS))  # as Home Assistant sends it, for servers that do not stream
            await send(client, SynthesizeStart(voice=SLT), *chunks, whole, SynthesizeStop())
            events = await heard(client, SynthesizeStopped)
        assert types(events) == ["audio-start", "audio-chunk", "audio-stop", "synthesize-stopped"]
        said.append(sound(events))
    assert said[0] == said[1] and len(said[0]) > 3 * 2 * 24_000
    assert np.abs(np.frombuffer(said[0], "<i2")).max() > 1000


@in_a_loop
async def test_sound_comes_before_the_text_ends(server):
    async with connected(server) as client:
        await send(client, SynthesizeStart(voice=SLT), *(SynthesizeChunk(token) for token in TOKENS))
        first = await heard(client, AudioChunk)
        assert types(first) == ["audio-start", "audio-chunk"]
        await send(client, SynthesizeStop())
        events = await heard(client, SynthesizeStopped)
        assert types(events) == ["audio-chunk", "audio-stop", "synthesize-stopped"]
        # The connection stays for others.
        await send(client, SynthesizeStart(), SynthesizeStop(), Ping("x"))
        assert types(await heard(client, Pong)) == ["audio-start", "audio-stop", "synthesize-stopped", "pong"]


def event(data: object = None, kind: str = "synthesize", **more: object) -> bytes:
    return json.dumps({"type": kind, "data": data, **more}).encode() + b"\n"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (event({"text": "Hello, zebra"}), "unknown_words"),
        (event({"text": "..."}), "no_words"),
        (event({"text": ""}), "invalid_value"),
        (event({"text": "a" * 4097}), "invalid_value"),
        (event({"text": "\ud800"}), "invalid_value"),
        (event({"text": 5}), "invalid_value"),
        (event({"text": "Hello", "voice": {"name": "../../etc/passwd"}}), "voice_not_found"),
        (event({"text": "Hello", "voice": {"name": 7}}), "invalid_value"),
        (event({"text": "Hello", "voice": {"language": "de"}}), "voice_not_found"),
        (event({"text": "Hello", "voice": {"name": "slt", "speaker": "x"}}), None),
        (event({"text": "Hello", "voice": "slt"}), "invalid_value"),
        (event({"text": "Hello", "text_format": "ssml"}), None),
        (event({}), "invalid_value"),
        (event(7), "invalid_value"),
        (event({"text": "Hello"}, "synthesize-chunk"), "invalid_event"),
        (event({}, "synthesize-stop"), "invalid_event"),
        (event({}, "synthesize-start") * 2, "invalid_event"),
        (event({}, "synthesize-start") + event({"text": ["a"]}, "synthesize-chunk"), "invalid_value"),
        (event({}, "synthesize-start") + event({"text": "one two " * 300}, "synthesize-chunk") * 3, None),
        (event({}, "describe", data_length=1 << 30), "invalid_event"),
        (event({}, "describe", payload_length="x"), "invalid_event"),
        (event({}, "describe", payload_length=1.5), "invalid_event"),
        (b"[1]\n", "invalid_event"),
        (b"{}\n", "invalid_event"),
        (b"[" * 60_000 + b"\n", "invalid_event"),
        (b"x" * 100_000, "invalid_event"),
        (b"\xff\xfe\n", "invalid_event"),
        # A page of another site that posts a form: nothing of its body is read.
        (b"POST / HTTP/1.1\r\nhost: x\r\n\r\n" + event({"text": "Hello"}), "invalid_event"),
    ],
)
def test_bad_input_is_told_and_ends_the_connection(server, sent, code):
    with socket.create_connection(("127.0.0.1", server.wyoming_port), timeout=LIMIT_S) as client:
        client.sendall(sent)
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
    head, _, data = answer.partition(b"\n")
    assert json.loads(head)["type"] == "error" and "traceback" not in answer.decode().lower()
    told = json.loads(data)
    assert told["text"] and told.get("code") == code
    until(lambda: server.idle)


@in_a_loop
async def test_what_is_unknown_is_passed_over(server):
    async with connected(server) as client:
        await send(client, Event("transcribe", {"a": 1}, b"payload"), Ping("hi"))
        assert Pong.from_event(await client.read_event()).text == "hi"


@pytest.mark.parametrize("streamed", [False, True])
@in_a_loop
async def test_a_client_that_leaves_frees_its_row(server, streamed):
    with leaving(server, most_s=100):
        async with connected(server) as client:
            asked = [SynthesizeStart(), SynthesizeChunk(LONG)] if streamed else [Synthesize(LONG)]
            await send(client, *asked)
            await heard(client, AudioChunk)
            until(lambda: server.engine.requests)


def test_a_client_that_leaves_before_the_first_sound(server):
    with leaving(server, most_s=100), narrow_connection(("127.0.0.1", server.wyoming_port)) as client:
        client.sendall(event({"text": LONG}))
        until(lambda: not server.idle)


@pytest.mark.parametrize("code", [errno.ECONNRESET, errno.EHOSTUNREACH, errno.ETIMEDOUT], ids=errno.errorcode.get)
@in_a_loop
async def test_a_client_whose_network_is_gone_has_left(server, code):
    """And is no error of the server's."""
    figures = server.get("/metrics").text
    refused = [line for line in figures.splitlines() if line.startswith('bark_accel_requests_total{status="5')]
    with leaving(server, most_s=100):
        async with connected(server) as client:
            await send(client, Synthesize(LONG))
            await heard(client, AudioChunk)
            (session,) = (one for one in server.state.sessions if one._speaking)
            lose, error = session._writer._protocol.connection_lost, OSError(code, os.strerror(code))
            session._writer._loop.call_soon_threadsafe(lose, error)
            until(lambda: session not in server.state.sessions)
    figures = server.get("/metrics").text
    assert [line for line in figures.splitlines() if line.startswith('bark_accel_requests_total{status="5')] == refused


@in_a_loop
async def test_who_leaves_and_hears_nothing_is_not_counted(server):
    left = server.clients_left
    async with connected(server) as client:
        await send(client, Ping())
        await heard(client, Pong)
    until(lambda: not server.state.sessions)
    assert server.clients_left == left


def test_a_slow_reader_holds_back_what_follows(server):
    """Of 150 sentences, which are some 250 s."""
    with leaving(server, most_s=200), narrow_connection(("127.0.0.1", server.wyoming_port)) as client:
        client.sendall(event({"text": LONG}))
        assert client.recv(1)
        until(lambda: is_held_back(server))
        assert server.users == 1


@in_a_loop
async def test_limits_are_those_of_http():
    with running(Settings(max_rows=1, max_queued=0), wyoming=True) as server:
        async with connected(server) as first, connected(server) as second:
            await send(first, Synthesize(LONG))
            await heard(first, AudioChunk)
            await send(second, Synthesize(TEXT))
            (refused,) = await heard(second)
            assert Error.from_event(refused).code == "busy" and await second.read_event() is None
            assert server.post(SPEECH, json={"model": "tts-1", "input": TEXT}).status_code == 429
        figures = server.get("/metrics").text
        assert 'bark_accel_requests_total{status="429"} 2.0' in figures


@in_a_loop
async def test_a_deadline(server, deadlines):
    async with connected(server) as client:
        await send(client, Synthesize(LONG))
        events = await heard(client, AudioChunk)
        with deadlines.passed():
            events += await heard(client)
        assert types(events) == ["audio-start", "audio-chunk", "error"], "and nothing that passes for the whole"
        assert Error.from_event(events[-1]).code == "deadline_exceeded" and await client.read_event() is None
    async with connected(server) as client:
        await send(client, SynthesizeStart(), SynthesizeChunk("Hello"))
        until(lambda: [session._speaking for session in server.state.sessions] == [True])
        with deadlines.passed():
            assert Error.from_event((await heard(client))[-1]).code == "deadline_exceeded"
    async with connected(server) as client:
        until(lambda: deadlines.running == 1)
        with deadlines.passed():
            assert await client.read_event() is None, "who says nothing is let go"
    assert deadlines.given_s == {server.state.settings.deadline_s}


@in_a_loop
async def test_the_end_of_the_server_lets_it_finish():
    with running(Settings(drain_s=LIMIT_S), wyoming=True) as server:
        async with connected(server) as client, connected(server) as waiting:
            await send(waiting, Ping())
            await heard(waiting, Pong)
            await send(client, SynthesizeStart(), SynthesizeChunk("Hello, my dog is cute. Good morning. Yes"))
            events, port = await heard(client, AudioChunk), server.wyoming_port
            server.stop()
            events += await heard(client)
            assert Error.from_event(events[-1]).code == "shutting_down"
            assert len(sound(events)) > 2 * 2 * 24_000, "both sentences that were whole"
            assert Error.from_event((await heard(waiting))[-1]).code == "shutting_down"
            with pytest.raises(OSError):
                await AsyncTcpClient("127.0.0.1", port).connect()
