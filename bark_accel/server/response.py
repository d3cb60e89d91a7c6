"""The answer that carries sound: sent as it is made, ended when nobody listens."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator

from anyio import CancelScope, create_task_group, fail_after
from fastapi.sse import format_sse_event
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .encoding import FORMATS
from .errors import ApiError, as_api_error
from .schema import SpeechBody, SpeechOptions
from .speech import Speech, encoded, opened
from .state import State


def event(content: dict) -> bytes:
    """An event of `stream_format="sse"`."""
    return format_sse_event(data_str=json.dumps(content))


async def events(speech: Speech, options: SpeechOptions) -> AsyncIterator[bytes]:
    """The same as events: `speech.audio.delta` with the sound in base64, `speech.audio.done` with tokens counted."""
    async for piece in encoded(speech, options):
        yield event({"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode("ascii")})
    yield event({"type": "speech.audio.done", "usage": speech.usage})


class SpeechResponse(Response):
    """Takes a place in the line, and sends a speech.

    The status is that of the first sound: what fails earlier is answered with its error. A client that goes away, or a
    deadline that passes (also while the model is being loaded), ends the generation. A slow client holds back the
    chunks of text that follow.

    Parameters
    ----------
    state : State
    body : SpeechBody
    """

    def __init__(self, state: State, body: SpeechBody):
        self._state, self._asked, self._sse = state, body, body.stream_format == "sse"
        media_type = "text/event-stream" if self._sse else FORMATS[body.response_format].media_type
        self.status_code, self.media_type, self.background = 200, media_type, None
        self._ended, self._outcome = False, 200
        headers = {"cache-control": "no-store"}
        if body.instructions:
            headers["warning"] = '299 bark_accel "instructions are ignored: Bark has no such thing"'
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = await self._sent(receive, send)
        self._state.metrics.requests.labels(status=self._outcome).inc()
        if refusal is not None:
            await refusal.response()(scope, receive, send)

    async def _sent(self, receive: Receive, send: Send) -> ApiError | None:
        """Send all of it; return what stands in the way of the first sound."""
        refusal: list[ApiError] = []
        async with create_task_group() as group:
            group.start_soon(self._send, send, refusal, group.cancel_scope)
            while (await receive())["type"] != "http.disconnect":
                pass
            if not self._ended:
                self._state.metrics.left.inc()
            group.cancel_scope.cancel()
        return refusal[0] if refusal else None

    async def _send(self, send: Send, refusal: list[ApiError], scope: CancelScope) -> None:
        started = False
        try:
            with fail_after(self._state.settings.deadline_s):
                async with opened(self._state, self._asked, self._asked.input) as speech:
                    async for piece in (events if self._sse else encoded)(speech, self._asked):
                        if not started:
                            started = True
                            await self._start(send, speech.seed)
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                    self._ended = True
        except Exception as error:
            found = as_api_error(error)
            self._ended, self._outcome = True, found.status
            if not started:
                refusal.append(found)
            if not started or not self._sse:
                # Without its end, the connection breaks off: all that tells a client that there was more sound.
                scope.cancel()
                return
            await send(
                {"type": "http.response.body", "body": event({"type": "error", **found.body}), "more_body": True}
            )
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        scope.cancel()

    async def _start(self, send: Send, seed: int) -> None:
        self.headers["x-bark-seed"] = str(seed)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
