"""`POST /v1/audio/speech`."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from .encoding import FORMATS
from .errors import ErrorBody
from .response import SpeechResponse
from .schema import SpeechBody
from .state import State

_SOUND = {"schema": {"type": "string", "format": "binary"}}
_CONTENT = {kind.media_type: _SOUND for kind in FORMATS.values()} | {"text/event-stream": _SOUND}
_REFUSALS = {status: {"model": ErrorBody} for status in (400, 401, 403, 404, 413, 429, 500, 503, 504)}


def speech_routes(state: State) -> APIRouter:
    """The route of OpenAI's API that speaks."""
    router = APIRouter(tags=["speech"])

    @router.post(
        "/v1/audio/speech",
        response_class=Response,
        responses={200: {"description": "Sound, as it is made.", "content": _CONTENT}, **_REFUSALS},  # type: ignore[dict-item]
    )
    async def speech(body: SpeechBody) -> Response:
        """Say a text. The header `x-bark-seed` is the seed that says it again."""
        return SpeechResponse(state, body)

    return router
