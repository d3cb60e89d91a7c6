"""Text that comes in pieces, such as a language model's tokens, and its sound."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Protocol

from anyio import CancelScope, create_task_group, fail_after, to_thread

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
        if max(map(len, (*whole, self._text))) > MAX_CHARACTERS:
            raise ApiError(400, f"expected a sentence within {MAX_CHARACTERS} characters, or a flush", param="text")
        return _said(whole)

    def rest(self) -> list[str]:
        """Everything that is left."""
        text, self._text = self._text, ""
        return _said([text])


def _said(texts: list[str]) -> list[str]:
    return [text for text in texts if any(character.isalnum() for character in text)]


class Listener(Protocol):
    """Hears a `SpokenText`."""

    async def sentence(self, text: str) -> None:
        """Take a sentence, whose sound follows."""

    async def sound(self, piece: bytes) -> None:
        """Take bytes of the format that was asked for."""


class SpokenText:
    """Text in pieces, said sentence by sentence: the sound of all of them is one stream, in one format.

    Parameters
    ----------
    state : State
    options : SpeechOptions
    """

    def __init__(self, state: State, options: SpeechOptions):
        self.seed = secrets.randbits(SEED_BITS) if options.seed is None else options.seed
        self._state, self._options = state, options
        self._sentences = Sentences(language_of(options.voice_name))
        self._error: Exception | None = None
        self._saying = CancelScope()
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

    def abort(self, error: Exception) -> None:
        """Let `say` raise an error now."""
        self._error = self._error or error
        self._saying.cancel()

    async def say(self, listener: Listener, feed: Callable[[SpokenText], Awaitable[None]]) -> None:
        """Say everything, after `check`; each sentence has the deadline of a request.

        Parameters
        ----------
        listener : Listener
        feed : coroutine function
            Runs beside it: adds text, and ends it, by returning if not before. What it raises is raised after what it
            has added was said.
        """
        async with create_task_group() as group:
            self._saying = group.cancel_scope
            group.start_soon(self._feed, feed)
            try:
                await self._say_all(listener)
            except Exception as error:
                self._error = self._error or error
            group.cancel_scope.cancel()
        if self._error is not None:
            raise self._error

    async def _feed(self, feed: Callable[[SpokenText], Awaitable[None]]) -> None:
        try:
            await feed(self)
            await self.end()
        except Exception as error:
            await self._queue.put(error)

    async def _say_all(self, listener: Listener) -> None:
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
