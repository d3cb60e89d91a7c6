"""The answer that carries sound: sent as it is made, ended when nobody listens."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator

from anyio import CancelScope, create_task_group, fail_after, to_thread
from fastapi.sse import format_sse_event
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .encoding import FORMATS, Encoder
from .errors import ApiError, as_api_error
from .metrics import Metrics
from .schema import SpeechOptions
from .speech import Speech


async def encoded(speech: Speech, options: SpeechOptions) -> AsyncIterator[bytes]:
    """The sound of a speech in the format that was asked for, in pieces as they come."""
    encoder = Encoder(options.response_format, speech.sampling_rate, options.speed)
    async for samples in speech:
        piece = await to_thread.run_sync(encoder.encode, samples)
        if piece:
            yield piece
    end = await to_thread.run_sync(encoder.finish)
    if end:
        yield end


def event(content: dict) -> bytes:
    """An event of `stream_format="sse"`."""
    return format_sse_event(data_str=json.dumps(content))


async def events(speech: Speech, options: SpeechOptions) -> AsyncIterator[bytes]:
    """The same as events: `speech.audio.delta` with the sound in base64, `speech.audio.done` with tokens counted."""
    async for piece in encoded(speech, options):
        yield event({"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode("ascii")})
    yield event({"type": "speech.audio.done", "usage": speech.usage})


class SpeechResponse(Response):
    """Sends a speech.

    The status is that of the first sound: what fails earlier is answered with its error. A client that goes away, or a
    deadline that passes, ends the generation. A slow client holds back the chunks of text that follow.

    Parameters
    ----------
    speech : Speech
    options : SpeechOptions
    sse : bool
        Events instead of the sound itself.
    deadline_s : float
        Seconds for the whole answer.
    metrics : Metrics
    headers : dict
    """

    def __init__(
        self,
        speech: Speech,
        options: SpeechOptions,
        *,
        sse: bool,
        deadline_s: float,
        metrics: Metrics,
        headers: dict[str, str],
    ):
        media_type = "text/event-stream" if sse else FORMATS[options.response_format].media_type
        self.status_code, self.media_type, self.background = 200, media_type, None
        self.body_iterator = (events if sse else encoded)(speech, options)
        self._speech, self._sse = speech, sse
        self._deadline_s, self._metrics = deadline_s, metrics
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._speech:
                refusal = await self._sent(receive, send)
        except ApiError as error:  # the line is full
            refusal = error
        self._metrics.requests.labels(status=refusal.status if refusal else 200).inc()
        if refusal is not None:
            await refusal.response()(scope, receive, send)

    async def _sent(self, receive: Receive, send: Send) -> ApiError | None:
        """Send all of it; return what stands in the way of the first sound."""
        refusal: list[ApiError] = []
        async with create_task_group() as group:
            group.start_soon(self._send, send, refusal, group.cancel_scope)
            while (await receive())["type"] != "http.disconnect":
                pass
            if not self._speech.ended:
                self._metrics.left.inc()
            group.cancel_scope.cancel()
        return refusal[0] if refusal else None

    async def _send(self, send: Send, refusal: list[ApiError], scope: CancelScope) -> None:
        started = False
        try:
            with fail_after(self._deadline_s):
                async for piece in self.body_iterator:
                    if not started:
                        started = True
                        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        except Exception as error:
            found = as_api_error(error)
            if not started:
                refusal.append(found)
                scope.cancel()
                return
            if not self._sse:
                # A connection that breaks off is all that tells a client of sound from a sound that has ended.
                raise
            await send(
                {"type": "http.response.body", "body": event({"type": "error", **found.body}), "more_body": True}
            )
        if not started:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        scope.cancel()
