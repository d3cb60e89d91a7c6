"""A WebSocket that takes text as it comes, such as a language model's tokens, and sends its sound."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Literal

from anyio import fail_after, move_on_after
from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from .access import KEY_PROTOCOL, KeyRing, is_foreign, websocket_key
from .errors import ApiError, as_api_error, invalid_value
from .schema import SpeechOptions, Text
from .session import LINGER_S, Session
from .spoken_text import SpokenText
from .state import State

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


class SocketSession(Session):
    """A client that hears the text that it sends in pieces; errors are the last message before the close."""

    def __init__(self, websocket: WebSocket, state: State):
        super().__init__(state)
        self._websocket = websocket

    async def _serve(self) -> None:
        refusal: ApiError | None = None
        try:
            await self._talk()
        except WebSocketDisconnect:
            self._state.metrics.left.inc()
        except Exception as error:
            refusal = as_api_error(error)
            # Who reads nothing does not read this either.
            with suppress(WebSocketDisconnect, RuntimeError), move_on_after(LINGER_S):
                await self._websocket.send_json({"type": "error", **refusal.body})
                await self._websocket.close(_close_code(refusal.status))
        self._state.metrics.requests.labels(status=refusal.status if refusal else 200).inc()

    async def sentence(self, text: str) -> None:
        """Tell what is said next."""
        await self._websocket.send_json({"type": "speech.sentence", "text": text})

    async def sound(self, piece: bytes) -> None:
        """Send it."""
        await self._websocket.send_bytes(piece)

    async def _talk(self) -> None:
        options = await self._receive()
        if not isinstance(options, Start):
            raise ApiError(400, f"expected a message of type 'start' first, got {options.type!r}", param="type")
        text = SpokenText(self._state, options)
        await text.check()
        await self._websocket.send_json({"type": "speech.started", "seed": text.seed})
        await text.say(self, self._feed)
        await self._websocket.send_json({"type": "speech.audio.done"})
        await self._websocket.close()

    async def _receive(self) -> Start | TextPart | Flush | End:
        with fail_after(self._state.settings.deadline_s):
            text = await self._received(self._receive_text)
        try:
            return _MESSAGE.validate_json(text)
        except ValidationError as error:
            raise invalid_value(error.errors(), "message") from None

    async def _receive_text(self) -> str:
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"])
        if message.get("text") is None:
            raise ApiError(400, "expected messages of text, got binary data", code="invalid_value")
        return message["text"]

    async def _feed(self, text: SpokenText) -> None:
        """Add what comes; a client that leaves ends it all."""
        try:
            while not isinstance(message := await self._receive(), End):
                if isinstance(message, Start):
                    raise ApiError(400, "expected one message of type 'start', got two", param="type")
                await (text.add(message.text) if isinstance(message, TextPart) else text.flush())
            await text.end()
            while True:
                await self._receive_text()
        except WebSocketDisconnect as error:
            text.abort(error)


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
        await SocketSession(websocket, state).run()

    return router


def _close_code(status: int) -> int:
    if status in (429, 503):
        return _TRY_LATER
    return _SERVER_ERROR if status >= 500 else _POLICY_VIOLATION
