"""Error objects in the place of other middleware's plain text."""

from __future__ import annotations

from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, body_too_large


class ErrorObjects:
    """Middleware around Starlette's, whose refusals are plain text: a refused `Host` (400), a long body (413)."""

    def __init__(self, app: ASGIApp, max_body_size: int):
        self._app, self._max_body_size = app, max_body_size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        replaced = False

        async def answer(message: Message) -> None:
            nonlocal replaced
            if _is_plain_error(message):
                replaced = True
                await self._error(message["status"]).response()(scope, receive, send)
            elif not replaced:
                await send(message)

        await self._app(scope, receive, answer)

    def _error(self, status: int) -> ApiError:
        if status == 400:
            message = "expected a name of this server in the header Host (--allowed-host), got another"
            return ApiError(status, message, code="invalid_host")
        if status == 413:
            return body_too_large(self._max_body_size)
        return ApiError(status, HTTPStatus(status).phrase)


def _is_plain_error(message: Message) -> bool:
    if not message["type"].endswith("http.response.start") or message["status"] < 400:
        return False
    return Headers(raw=message["headers"]).get("content-type", "").startswith("text/plain")
