"""A WebSocket that takes text as it comes, such as a language model's tokens, and sends its sound."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from typing import Annotated, Literal

from anyio import CancelScope, create_task_group, fail_after, to_thread
from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from bark_accel.longform.reader import chunk_seed
from bark_accel.longform.text import split_sentences

from .access import KEY_PROTOCOL, KeyRing, is_foreign, websocket_key
from .encoding import Encoder
from .errors import ApiError, as_api_error
from .schema import MAX_CHARACTERS, SpeechOptions, Text
from .speaker import language_of
from .speech import SEED_BITS, Speech, find_voice, make_plan
from .state import State

# Sentences that wait; the client is not read from while there are more.
_AHEAD = 8
_POLICY_VIOLATION, _TRY_LATER, _SERVER_ERROR = 1008, 1013, 1011


class Start(SpeechOptions):
    """The first message: the options of all that follows."""

    type: Literal["start"]


class TextPart(BaseModel):
    """A piece of text, cut anywhere."""

    type: Literal["text"]
    text: Text


class Flush(BaseModel):
    """Say what has come, though no sentence has ended."""

    type: Literal["flush"]


class End(BaseModel):
    """No more text: say the rest, and close."""

    type: Literal["end"]


_MESSAGE: TypeAdapter[Start | TextPart | Flush | End] = TypeAdapter(
    Annotated[Start | TextPart | Flush | End, Field(discriminator="type")]
)


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


class Session:
    """One connection: the sound of all its sentences is one stream, in one format."""

    def __init__(self, websocket: WebSocket, state: State):
        self._websocket, self._state = websocket, state
        self._queue: asyncio.Queue[str | Exception | None] = asyncio.Queue(_AHEAD)

    async def run(self) -> None:
        """Talk until either side ends it; errors are the last message before the close."""
        refusal: ApiError | None = None
        try:
            await self._talk()
        except WebSocketDisconnect:
            self._state.metrics.left.inc()
        except Exception as error:
            refusal = as_api_error(error)
            with suppress(WebSocketDisconnect, RuntimeError):
                await self._websocket.send_json({"type": "error", **refusal.body})
                await self._websocket.close(_close_code(refusal.status))
        self._state.metrics.requests.labels(status=refusal.status if refusal else 200).inc()

    async def _talk(self) -> None:
        options = await self._receive()
        if not isinstance(options, Start):
            raise ApiError(400, f"expected a message of type 'start' first, got {options.type!r}", param="type")
        with fail_after(self._state.settings.deadline_s):
            speaker = await self._state.models.get(options.model)
            await to_thread.run_sync(find_voice, speaker, self._state.voices, options.voice_name or "alloy")
        failed: list[Exception] = []
        async with create_task_group() as group:
            group.start_soon(self._read, Sentences(language_of(options.voice_name)), group.cancel_scope, failed)
            try:
                await self._speak(options, speaker.sampling_rate)
            except Exception as error:
                failed.append(error)
            group.cancel_scope.cancel()
        if failed:
            raise failed[0]

    async def _receive(self) -> Start | TextPart | Flush | End:
        with fail_after(self._state.settings.deadline_s):
            text = await self._websocket.receive_text()
        try:
            return _MESSAGE.validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"][1:]) or None
            raise ApiError(400, f"{place or 'message'}: {first['msg']}", code="invalid_value", param=place) from None

    async def _read(self, sentences: Sentences, scope: CancelScope, failed: list[Exception]) -> None:
        """Queue what is to be said, None at the end, an error where one comes; a client that leaves ends it all."""
        try:
            while not isinstance(message := await self._receive(), End):
                if isinstance(message, Start):
                    raise ApiError(400, "expected one message of type 'start', got two", param="type")
                whole = sentences.add(message.text) if isinstance(message, TextPart) else sentences.rest()
                for sentence in whole:
                    await self._queue.put(sentence)
            for sentence in sentences.rest():
                await self._queue.put(sentence)
            await self._queue.put(None)
            await self._websocket.receive_text()
        except WebSocketDisconnect as error:
            failed.append(error)
            scope.cancel()
        except Exception as error:
            await self._queue.put(error)

    async def _speak(self, options: Start, rate: int) -> None:
        seed = secrets.randbits(SEED_BITS) if options.seed is None else options.seed
        encoder = Encoder(options.response_format, rate, options.speed)
        spoken = 0
        await self._websocket.send_json({"type": "speech.started", "seed": seed})
        while (sentence := await self._queue.get()) is not None:
            if isinstance(sentence, Exception):
                raise sentence
            own = options.model_copy(update={"seed": chunk_seed(seed, spoken)})
            with fail_after(self._state.settings.deadline_s):
                await self._say(own, sentence, encoder, patient=spoken > 0)
            spoken += 1
        await self._send(await to_thread.run_sync(encoder.finish))
        await self._websocket.send_json({"type": "speech.audio.done"})
        await self._websocket.close()

    async def _say(self, options: Start, sentence: str, encoder: Encoder, *, patient: bool) -> None:
        """Say one sentence; only a session that has said nothing yet is not patient, and refused where all is full."""
        async with self._state.models.place(options.model, patient=patient) as speaker:
            plan = await to_thread.run_sync(make_plan, speaker, self._state.voices, options, sentence)
            await self._websocket.send_json({"type": "speech.sentence", "text": sentence.strip()})
            with Speech(plan, self._state.metrics) as speech:
                async for samples in speech:
                    await self._send(await to_thread.run_sync(encoder.encode, samples))

    async def _send(self, piece: bytes) -> None:
        if piece:
            await self._websocket.send_bytes(piece)


def socket_routes(state: State, ring: KeyRing) -> APIRouter:
    """The route `/v1/audio/speech/stream`."""
    router = APIRouter()

    @router.websocket("/v1/audio/speech/stream")
    async def stream(websocket: WebSocket) -> None:
        if not ring.accepts(websocket_key(websocket)) or is_foreign(websocket.headers, state.settings.cors_origins):
            # Before it is accepted: the client gets 403.
            await websocket.close(_POLICY_VIOLATION)
            return
        offered = [name for name in websocket.scope.get("subprotocols", []) if not name.startswith(KEY_PROTOCOL)]
        await websocket.accept(offered[0] if offered else None)
        await Session(websocket, state).run()

    return router


def _close_code(status: int) -> int:
    if status in (429, 503):
        return _TRY_LATER
    return _SERVER_ERROR if status >= 500 else _POLICY_VIOLATION
