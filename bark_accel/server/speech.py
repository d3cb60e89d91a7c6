"""One request for speech: its chunks of text, and their sound in order."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
from anyio import to_thread

from bark_accel import SpeechRequest
from bark_accel.longform.reader import CHUNK_PAUSE_S, PARAGRAPH_PAUSE_S, chunk_seed
from bark_accel.longform.text import TextChunk
from bark_accel.voices.preset import VoicePreset

from .encoding import Encoder
from .errors import ApiError
from .metrics import Metrics
from .schema import SpeechOptions
from .speaker import Speaker, silence
from .state import State
from .voices import UploadedVoices, aliased

# torch's CPU generator uses as many bits.
SEED_BITS = 32
_NO_SOUND = "the model ended before its first sound; try another seed, voice or text"


@dataclass(frozen=True)
class Plan:
    """A checked request: who says which chunks of text, in which voice, with which random numbers."""

    speaker: Speaker
    chunks: list[TextChunk]
    voice: VoicePreset | None
    seed: int
    policy: str
    temperature: float | None


def make_plan(speaker: Speaker, voices: UploadedVoices, options: SpeechOptions, text: str) -> Plan:
    """Check a request and find its voice. Raises `ApiError`."""
    name = options.voice_name or "alloy"
    preset = find_voice(speaker, voices, name)
    chunks = speaker.plan(text, name)
    seed = secrets.randbits(SEED_BITS) if options.seed is None else options.seed
    return Plan(speaker, chunks, preset, seed, options.policy, options.temperature)


def find_voice(speaker: Speaker, voices: UploadedVoices, name: str) -> VoicePreset | None:
    """The voice of a name: the model's own, uploaded, or an alias. Raises `ApiError` (400) where there is none."""
    if name in speaker.voices:
        return speaker.preset(name)
    uploaded = voices.get(name)
    if uploaded is not None:
        speaker.check_preset(uploaded)
        return uploaded
    aliases = aliased(speaker.voices)
    if name not in aliases:
        message = f"there is no voice {name!r}; GET /v1/audio/voices lists them"
        raise ApiError(400, message, param="voice", code="voice_not_found")
    return speaker.preset(aliases[name])


@asynccontextmanager
async def opened(state: State, options: SpeechOptions, text: str, *, patient: bool = False) -> AsyncIterator[Speech]:
    """The speech of a text, with a place in the line: patient as in `Models.place`. Raises `ApiError`."""
    async with state.models.place(options.model, patient=patient) as speaker:
        plan = await to_thread.run_sync(make_plan, speaker, state.voices, options, text)
        with Speech(plan, state.metrics) as speech:
            yield speech


async def encoded(speech: Speech, options: SpeechOptions) -> AsyncIterator[bytes]:
    """The sound of a speech in the format that was asked for, in pieces as they come."""
    with Encoder(options.response_format, speech.sampling_rate, options.speed) as encoder:
        async for samples in speech:
            piece = await to_thread.run_sync(encoder.encode, samples)
            if piece:
                yield piece
        end = await to_thread.run_sync(encoder.finish)
        if end:
            yield end


class Speech:
    """The sound of a plan, generated at most one chunk of text ahead of its listener.

    The caller holds a place in the speaker's line. Leaving its `with` block ends whatever is still generated.
    """

    def __init__(self, plan: Plan, metrics: Metrics):
        self.samples = 0
        """Samples that were given out."""
        self._plan = plan
        self._metrics = metrics
        self._started = time.monotonic()
        self._requests: list[SpeechRequest] = []
        self._taken_s = 0.0
        self._closed = False

    def __enter__(self) -> Speech:
        return self

    def __exit__(self, *error: object) -> None:
        self._closed = True
        for request in self._requests:
            request.cancel()

    @property
    def seed(self) -> int:
        """The seed that says it again."""
        return self._plan.seed

    @property
    def sampling_rate(self) -> int:
        return self._plan.speaker.sampling_rate

    @property
    def usage(self) -> dict[str, int]:
        """Tokens, as the API counts them."""
        speaker = self._plan.speaker
        read = sum(speaker.tokens(chunk.text) for chunk in self._plan.chunks)
        spoken = speaker.spoken_tokens(self.samples)
        return {"input_tokens": read, "output_tokens": spoken, "total_tokens": read + spoken}

    async def __aiter__(self) -> AsyncIterator[np.ndarray]:
        """Samples [S] float32, as they come."""
        async for samples in self._chunks():
            if not self.samples:
                self._metrics.first_sound.observe(time.monotonic() - self._started)
            self.samples += samples.size
            self._metrics.sound.inc(samples.size / self.sampling_rate)
            yield samples
        self._count()

    async def _chunks(self) -> AsyncIterator[np.ndarray]:
        chunks, voice = self._plan.chunks, self._plan.voice
        following = await self._submit(0, voice, None)
        for index, chunk in enumerate(chunks):
            request = following
            last = index + 1 == len(chunks)
            ahead = None
            silent = True
            async for piece in request:
                silent = False
                yield piece.numpy()
                # Without a voice, the chunks after the first have the voice that it made.
                if ahead is None and not last and voice is not None:
                    ahead = await self._submit(index + 1, voice, request)
            if silent:
                raise ApiError(500, _NO_SOUND, code="no_sound")
            if last:
                return
            voice = voice or _carried(request)
            following = ahead or await self._submit(index + 1, voice, request)
            pause = PARAGRAPH_PAUSE_S if chunk.ends_paragraph else CHUNK_PAUSE_S
            yield silence(pause * (2 if chunk.break_follows else 1), self.sampling_rate)

    async def _submit(self, index: int, voice: VoicePreset | None, after: SpeechRequest | None) -> SpeechRequest:
        """Let a chunk of text be said, which is heard after another one: others' sound comes before it."""
        plan = self._plan
        seed = plan.seed if len(plan.chunks) == 1 else chunk_seed(plan.seed, index)
        options = {"seed": seed, "policy": plan.policy, "temperature": plan.temperature, "after": after}
        submit: Callable[[], SpeechRequest] = partial(
            plan.speaker.submit,
            plan.chunks[index].text,
            voice,
            **options,  # type: ignore[arg-type]
        )
        # Not left by a cancelled task, so that no request is lost.
        request = await to_thread.run_sync(submit)
        self._forget_done()
        self._requests.append(request)
        if self._closed:
            request.cancel()
        return request

    def _forget_done(self) -> None:
        """Keep of those that are done what they took, and not their sound."""
        self._taken_s += sum(request.seconds_taken for request in self._requests if request.done())
        self._requests = [request for request in self._requests if not request.done()]

    def _count(self) -> None:
        seconds, heard_s = time.monotonic() - self._started, self.samples / self.sampling_rate
        self._forget_done()
        self._plan.speaker.took(self._taken_s)
        if heard_s:
            self._metrics.real_time_factor.observe(seconds / heard_s)


def _carried(request: SpeechRequest) -> VoicePreset | None:
    preset = request.preset
    return preset if preset is not None and preset["coarse_prompt"].shape[1] > 0 else None
