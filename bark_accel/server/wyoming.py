"""Wyoming, the protocol of Home Assistant: the same speech over a plain socket, without keys."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from anyio import CancelScope, create_task_group, fail_after, move_on_after, to_thread
from pydantic import TypeAdapter
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, Eventable, async_write_event
from wyoming.info import Describe
from wyoming.ping import Ping, Pong
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
    SynthesizeTextFormat,
)

from .encoding import PCM_RATE
from .errors import ApiError, as_api_error
from .schema import SpeechBody, SpeechOptions, Text
from .session import LINGER_S, Session
from .speaker import Speaker
from .speech import encoded, opened
from .spoken_text import SpokenText
from .state import State
from .wyoming_events import EVENT_BYTES, EventReader, bad_event, checked, info, parsed, voice_name

logger = logging.getLogger("uvicorn.error")

# Events that wait.
_AHEAD = 64
_FORMAT = {"rate": PCM_RATE, "width": 2, "channels": 1}
_TEXT: TypeAdapter[str] = TypeAdapter(Text)

Options = TypeVar("Options", bound=SpeechOptions)


class WyomingServer:
    """Listens for Wyoming's clients.

    Parameters
    ----------
    state : State
        The server's: clients share its models, limits and figures with those of HTTP.
    host : str
    port : int
        0: a free one.
    """

    def __init__(self, state: State, host: str, port: int):
        self._state, self._host, self._port = state, host, port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task] = set()

    @property
    def port(self) -> int:
        """The port that it listens at."""
        assert self._server is not None
        return self._server.sockets[0].getsockname()[1]

    async def start(self) -> None:
        """Listen. Raises OSError where the address cannot be had."""
        self._server = await asyncio.start_server(self._meet, self._host, self._port, limit=EVENT_BYTES)
        logger.info("Wyoming on tcp://%s:%d", self._host, self.port)

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    def abort(self) -> None:
        """End what is left."""
        for task in self._tasks:
            task.cancel()

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await WyomingSession(self._state, reader, writer).run()
        finally:
            self._tasks.discard(task)


class WyomingSession(Session):
    """One client; an error is the last event before the end of the connection, since clients wait for nothing else."""

    def __init__(self, state: State, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        super().__init__(state)
        self._reader, self._writer = EventReader(reader), writer
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue(_AHEAD)
        self._speaking = self._started = self._left = False

    async def sentence(self, text: str) -> None:
        """Take a sentence, of which the protocol does not tell."""

    async def sound(self, piece: bytes) -> None:
        """Send samples, 16 bits each."""
        if not self._started:
            self._started = True
            await self._send(AudioStart(**_FORMAT))
        await self._send(AudioChunk(audio=piece, **_FORMAT))

    async def _serve(self) -> None:
        try:
            async with create_task_group() as group:
                group.start_soon(self._read, group.cancel_scope)
                await self._answer()
                group.cancel_scope.cancel()
        finally:
            with CancelScope(shield=True), move_on_after(LINGER_S), suppress(OSError):
                self._writer.close()
                await self._writer.wait_closed()
            self._writer.transport.abort()

    # What comes.

    async def _read(self, scope: CancelScope) -> None:
        """Queue events, and an error as the last; a client that leaves ends it all."""
        try:
            while (event := await self._received(self._reader.read)) is not None:
                await self._events.put(event)
        except Exception as error:
            await self._events.put(error)
        else:
            self._count_leaving()
            scope.cancel()

    async def _next(self) -> Event:
        """The next event. Raises what reading has met, and TimeoutError after the deadline."""
        with fail_after(self._state.settings.deadline_s):
            event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        return event

    async def _next_request(self) -> Event | None:
        try:
            return await self._next()
        except TimeoutError:
            return None

    # What goes.

    async def _answer(self) -> None:
        try:
            while (event := await self._next_request()) is not None:
                await self._answer_event(event)
        except ConnectionError:
            self._count_leaving()
        except Exception as error:
            refusal = as_api_error(error)
            self._count(refusal.status)
            with suppress(ConnectionError), move_on_after(LINGER_S):
                await self._send(Error(text=refusal.message, code=refusal.code))

    async def _answer_event(self, event: Event) -> None:
        if Describe.is_type(event.type):
            speaker = await self._speaker()
            uploaded = await to_thread.run_sync(self._state.voices.fitting, speaker.fits)
            await self._send(info(speaker, uploaded))
        elif Ping.is_type(event.type):
            await self._send(Pong(text=parsed(Ping, event).text))
        elif Synthesize.is_type(event.type):
            await self._spoken(self._synthesize(parsed(Synthesize, event)))
        elif SynthesizeStart.is_type(event.type):
            await self._spoken(self._stream(parsed(SynthesizeStart, event)))
        elif SynthesizeChunk.is_type(event.type) or SynthesizeStop.is_type(event.type):
            raise bad_event(f"synthesize-start first, got {event.type}")

    async def _spoken(self, speaking: Coroutine[Any, Any, None]) -> None:
        self._speaking = True
        await speaking
        self._speaking = False
        self._count(200)

    async def _synthesize(self, asked: Synthesize) -> None:
        with fail_after(self._state.settings.deadline_s):
            body = await self._options(SpeechBody, asked, input=asked.text)
            async with opened(self._state, body, body.input) as speech:
                async for piece in encoded(speech, body):
                    await self.sound(piece)
            await self._end_sound()

    async def _stream(self, asked: SynthesizeStart) -> None:
        text = SpokenText(self._state, await self._options(SpeechOptions, asked))
        await text.check()
        await text.say(self, self._feed)
        await self._end_sound()
        await self._send(SynthesizeStopped())

    async def _feed(self, text: SpokenText) -> None:
        """Add what comes; the `synthesize` in a stream repeats the whole text, for servers that do not stream."""
        while not SynthesizeStop.is_type((event := await self._next()).type):
            if SynthesizeStart.is_type(event.type):
                raise bad_event("synthesize-stop before another synthesize-start")
            if SynthesizeChunk.is_type(event.type):
                await text.add(checked(_TEXT.validate_python, parsed(SynthesizeChunk, event).text))

    async def _end_sound(self) -> None:
        if not self._started:
            await self._send(AudioStart(**_FORMAT))
        self._started = False
        await self._send(AudioStop())

    async def _options(self, kind: type[Options], asked: Synthesize | SynthesizeStart, **given: Any) -> Options:
        """Return what was asked for, as HTTP has it. Raises `ApiError`."""
        if asked.text_format not in (None, SynthesizeTextFormat.TEXT):
            raise ApiError(400, f"expected plain text, got the format {asked.text_format!r}", param="text_format")
        name = None if asked.voice is None else voice_name(await self._speaker(), asked.voice)
        given |= {"model": self._state.models.default, "voice": name, "response_format": "pcm"}
        return checked(kind.model_validate, given)

    async def _speaker(self) -> Speaker:
        with fail_after(self._state.settings.deadline_s):
            return await self._state.models.get(self._state.models.default)

    async def _send(self, event: Eventable) -> None:
        try:
            await async_write_event(event.event(), self._writer)
        except OSError as error:  # a network that is gone
            raise ConnectionError(*error.args) from error

    def _count_leaving(self) -> None:
        """Count a client that left what it hears: once, though both what reads and what sends may meet it."""
        if self._speaking and not self._left:
            self._left = True
            self._state.metrics.left.inc()

    def _count(self, status: int) -> None:
        self._state.metrics.requests.labels(status=status).inc()
