"""Text that comes in pieces, such as a language model's tokens, and its sound."""

from __future__ import annotations

import asyncio
import secrets
from typing import Protocol

from anyio import fail_after, to_thread

from bark_accel.longform.reader import chunk_seed
from bark_accel.longform.text import split_sentences

from .encoding import Encoder
from .errors import ApiError
from .schema import MAX_CHARACTERS, SpeechOptions
from .speaker import language_of
from .speech import SEED_BITS, find_voice, opened
from .state import State

# Sentences that wait. While there are more, no text is taken, and a client that goes away is met with its next sound.
_AHEAD = 256


class Sentences:
    """Text in pieces into whole sentences.

    Parameters
    ----------
    language : str
        ISO 639-1 code.
    """

    def __init__(self, language: str):
        self._language, self._text = language, ""

    def add(self, text: str) -> list[str]:
        """Sentences that are whole: another one has begun after them. Raises `ApiError` for one that is too long."""
        *whole, self._text = split_sentences(self._text + text, self._language) or [""]
        if len(self._text) > MAX_CHARACTERS:
            raise ApiError(400, f"expected a sentence within {MAX_CHARACTERS} characters, or a flush", param="text")
        return _said(whole)

    def rest(self) -> list[str]:
        """Everything that is left."""
        text, self._text = self._text, ""
        return _said([text])


def _said(texts: list[str]) -> list[str]:
    return [text for text in texts if any(character.isalnum() for character in text)]


class Listener(Protocol):
    """Who hears a `SpokenText`."""

    async def sentence(self, text: str) -> None:
        """Take a sentence, whose sound follows."""

    async def sound(self, piece: bytes) -> None:
        """Take bytes of the format that was asked for."""


class SpokenText:
    """Text in pieces, said sentence by sentence: the sound of all of them is one stream, in one format.

    One task adds text and ends it, another lets it be said.

    Parameters
    ----------
    state : State
    options : SpeechOptions
    """

    def __init__(self, state: State, options: SpeechOptions):
        self.seed = secrets.randbits(SEED_BITS) if options.seed is None else options.seed
        self._state, self._options = state, options
        self._sentences = Sentences(language_of(options.voice_name))
        self._queue: asyncio.Queue[str | Exception | None] = asyncio.Queue(_AHEAD)

    async def check(self) -> None:
        """Raise `ApiError` where there is no such model or voice."""
        with fail_after(self._state.settings.deadline_s):
            speaker = await self._state.models.get(self._options.model)
            await to_thread.run_sync(find_voice, speaker, self._state.voices, self._options.voice_name or "alloy")
            self._rate = speaker.sampling_rate

    async def add(self, text: str) -> None:
        """Take a piece, cut anywhere; waits where too much is still to be said. Raises `ApiError`."""
        await self._say_later(self._sentences.add(text))

    async def flush(self) -> None:
        """Let what has come be said, though no sentence has ended."""
        await self._say_later(self._sentences.rest())

    async def end(self) -> None:
        """Say the rest; nothing is taken any more."""
        await self.flush()
        await self._queue.put(None)

    async def fail(self, error: Exception) -> None:
        """Let `say` raise an error after what came before it."""
        await self._queue.put(error)

    async def say(self, listener: Listener) -> None:
        """Say everything, after `check`; each sentence has the deadline of a request. Raises `ApiError`."""
        options, spoken = self._options, 0
        with Encoder(options.response_format, self._rate, options.speed) as encoder:
            while (sentence := await self._queue.get()) is not None:
                if isinstance(sentence, Exception):
                    raise sentence
                own = options.model_copy(update={"seed": chunk_seed(self.seed, spoken)})
                with fail_after(self._state.settings.deadline_s):
                    await self._say(own, sentence, encoder, listener, patient=spoken > 0)
                spoken += 1
            await _give(listener, await to_thread.run_sync(encoder.finish))

    async def _say(
        self, options: SpeechOptions, sentence: str, encoder: Encoder, listener: Listener, *, patient: bool
    ) -> None:
        """Say one sentence; only a text of which nothing was said yet is not patient, and refused where all is full."""
        async with opened(self._state, options, sentence, patient=patient) as speech:
            await listener.sentence(sentence.strip())
            async for samples in speech:
                await _give(listener, await to_thread.run_sync(encoder.encode, samples))

    async def _say_later(self, sentences: list[str]) -> None:
        for sentence in sentences:
            await self._queue.put(sentence)


async def _give(listener: Listener, piece: bytes) -> None:
    if piece:
        await listener.sound(piece)
