"""The official client, unchanged, against a real server."""

from __future__ import annotations

import base64
import io

import av
import httpx
import numpy as np
import openai
import pytest
import torch
from support.parity import accelerated_copy

from bark_accel.server.encoding import FORMATS

TEXT = "Hello, my dog is cute."


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def decoded(content: bytes) -> tuple[np.ndarray, int]:
    """Samples and their rate."""
    with av.open(io.BytesIO(content)) as container:
        frames = list(container.decode(audio=0))
    return np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames]), frames[0].sample_rate


def said(client, **options) -> bytes:
    given = {"model": "tts-1", "voice": "alloy", "input": TEXT, **options}
    return client.audio.speech.create(**given, extra_body={"seed": 3}).content


@pytest.fixture(scope="module")
def alone(speaking_model):
    """Samples of `generate` for the same seed."""
    from transformers import AutoProcessor

    from bark_accel import small_bark_path, stream

    processor = AutoProcessor.from_pretrained(small_bark_path())
    torch.manual_seed(3)
    model = accelerated_copy(speaking_model, strict=False)
    return torch.cat([c[0] for c in stream(model, **processor(TEXT, voice_preset="slt"))]).numpy()


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "pcm"])
def test_every_format_is_the_same_speech(client, alone, name):
    content = said(client, response_format=name)
    samples, rate = decoded(content)
    assert rate == (48_000 if name == "opus" else 16_000)
    padding_s = 0.1 if name in ("mp3", "aac") else 0.001
    assert 0 <= len(samples) / rate - len(alone) / 16_000 < padding_s
    if name in ("wav", "flac"):
        assert np.abs(samples / 2**15 - alone).max() < 2 / 2**15


def test_pcm_is_24_khz(client, alone):
    samples = np.frombuffer(said(client, response_format="pcm"), "<i2") / 2**15
    assert abs(len(samples) / 24_000 - len(alone) / 16_000) < 0.001
    spectrum = np.abs(np.fft.rfft(samples))
    assert spectrum[len(spectrum) * 17 // 24 :].max() < spectrum.max() / 100, "expected nothing above 8 kHz"


def test_it_streams(client):
    asked = {"model": "tts-1", "voice": "alloy", "input": TEXT, "response_format": "pcm"}
    with client.audio.speech.with_streaming_response.create(**asked) as response:
        pieces = list(response.iter_bytes())
    assert len(pieces) > 1 and response.headers["content-type"] == "audio/pcm"


def test_sse_is_the_same_sound(client):
    whole = said(client, response_format="pcm")
    asked = {"model": "tts-1", "voice": "alloy", "input": TEXT, "response_format": "pcm", "stream_format": "sse"}
    with client.audio.speech.with_streaming_response.create(**asked, extra_body={"seed": 3}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    events = [httpx.Response(200, text=line).json() for line in lines]
    assert [e["type"] for e in events] == ["speech.audio.delta"] * (len(events) - 1) + ["speech.audio.done"]
    assert b"".join(base64.b64decode(e["audio"]) for e in events[:-1]) == whole
    assert events[-1]["usage"]["input_tokens"] == 5 and events[-1]["usage"]["output_tokens"] > 20


@pytest.mark.parametrize("speed", [0.25, 0.7, 2.0, 4.0])
def test_speed_keeps_the_pitch(client, speed):
    normal, quick = (np.frombuffer(said(client, response_format="pcm", speed=s), "<i2") for s in (1.0, speed))
    assert len(quick) == pytest.approx(len(normal) / speed, rel=0.1)
    assert centre(quick) == pytest.approx(centre(normal), rel=0.15)


def centre(samples: np.ndarray) -> float:
    """Mean frequency, in cycles a sample."""
    power = np.abs(np.fft.rfft(samples.astype(float))) ** 2
    return float((power * np.arange(len(power))).sum() / power.sum() / len(samples))


def test_long_text_is_said_in_chunks(client, server):
    sentence = "Hello, my dog is cute. Good morning, my cat is big. "
    samples, rate = decoded(said(client, input=sentence * 6, response_format="flac"))
    assert len(samples) / rate > 12
    assert server.engine.requests == 0


def test_async_client(server):
    import asyncio

    async def speak() -> list[bytes]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            asked = {"model": "tts-1", "voice": "nova", "input": TEXT, "extra_body": {"seed": 9}}
            answers = await asyncio.gather(*(client.audio.speech.create(**asked) for _ in range(4)))
            return [answer.content for answer in answers]

    assert len(set(asyncio.run(speak()))) == 1


def test_models(client):
    assert [model.id for model in client.models.list()][:2] == ["small-bark", "tts-1"]
    assert client.models.retrieve("tts-1").id == "tts-1"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-2")


@pytest.mark.parametrize(
    ("options", "error", "code"),
    [
        ({"input": "Hello, zebra and cat"}, openai.BadRequestError, "unknown_words"),
        ({"input": "..."}, openai.BadRequestError, "no_words"),
        ({"input": ""}, openai.BadRequestError, "invalid_value"),
        ({"input": "hello " * 700}, openai.BadRequestError, "invalid_value"),
        ({"model": "gpt-2"}, openai.NotFoundError, "model_not_found"),
        ({"voice": "../../etc/passwd"}, openai.BadRequestError, "voice_not_found"),
        ({"voice": "speaker_embeddings/slt"}, openai.BadRequestError, "voice_not_found"),
        ({"speed": 5}, openai.BadRequestError, "invalid_value"),
        ({"response_format": "midi"}, openai.BadRequestError, "invalid_value"),
        ({"extra_body": {"seed": -1}}, openai.BadRequestError, "invalid_value"),
        ({"extra_body": {"policy": "fast"}}, openai.BadRequestError, "invalid_value"),
        ({"extra_body": {"temperature": 0}}, openai.BadRequestError, "invalid_value"),
    ],
)
def test_errors(client, options, error, code):
    with pytest.raises(error) as raised:
        client.audio.speech.create(**{"model": "tts-1", "voice": "alloy", "input": TEXT, **options})
    assert raised.value.code == code and raised.value.message


def test_extras(client):
    asked = {"model": "tts-1", "voice": {"id": "rms"}, "input": TEXT, "response_format": "pcm"}
    first = client.audio.speech.with_raw_response.create(**asked, instructions="Whisper.")
    assert "instructions are ignored" in first.headers["warning"]
    seed = int(first.headers["x-bark-seed"])
    assert client.audio.speech.create(**asked, extra_body={"seed": seed}).content == first.content
    for extra in ({"policy": "preview"}, {"temperature": 1.5}, {"seed": seed + 1}):
        assert client.audio.speech.create(**asked, extra_body={"seed": seed, **extra}).content != first.content
