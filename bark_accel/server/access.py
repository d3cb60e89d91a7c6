"""API keys, and other sites' pages: they decide who may call."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

from fastapi import HTTPException, Request, WebSocket
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import HTTPConnection

from .errors import ApiError

# A browser's WebSocket has no headers of its own: as in OpenAI's realtime API, the key is the rest of a subprotocol.
KEY_PROTOCOL = "openai-insecure-api-key."
_SAFE = ("GET", "HEAD", "OPTIONS")


class KeyRing:
    """API keys; compared as digests, each with all of them, so that times tell nothing of a key.

    Parameters
    ----------
    keys : iterable of str
        Empty: everybody may call.
    """

    def __init__(self, keys: Iterable[str]):
        self._digests = [_digest(key) for key in keys]

    def accepts(self, key: str | None) -> bool:
        """Tell whether a key is one of them, or none is needed."""
        if not self._digests:
            return True
        given = _digest(key or "")
        return bool(sum(hmac.compare_digest(given, known) for known in self._digests)) and key is not None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


class NeedsKey(HTTPBearer):
    """A dependency: the header `Authorization: Bearer KEY`."""

    def __init__(self, ring: KeyRing):
        super().__init__(scheme_name="API key", auto_error=False)
        self._ring = ring

    async def __call__(self, request: HTTPConnection) -> HTTPAuthorizationCredentials | None:
        try:
            given = await super().__call__(request)
        except HTTPException:
            given = None
        if not self._ring.accepts(given.credentials if given else None):
            raise ApiError(
                401,
                "expected the header Authorization: Bearer KEY with a key of this server",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return given


def websocket_key(websocket: WebSocket) -> str | None:
    """The key of a WebSocket: of its header, or of a subprotocol."""
    kind, _, key = websocket.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and key:
        return key
    offered = (name.strip() for name in websocket.headers.get("sec-websocket-protocol", "").split(","))
    return next((name.removeprefix(KEY_PROTOCOL) for name in offered if name.startswith(KEY_PROTOCOL)), None)


def is_foreign(headers: Mapping[str, str], origins: Collection[str]) -> bool:
    """Tell whether another site's page calls that may not.

    Browsers ask nobody before they open a WebSocket or send a form; what is no browser sends none of these headers.

    Parameters
    ----------
    headers : mapping
        The request's.
    origins : collection of str
        Origins that may; "*": all.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if "*" in origins or origin in origins or site == "same-origin":
        return False
    if origin is None:
        return site == "cross-site"
    return origin.partition("://")[2] != headers.get("host")


def own_pages_only(origins: Collection[str]) -> Callable[[Request], Awaitable[None]]:
    """A dependency: what changes something, or costs time, is not done for other sites' pages."""

    async def check(request: Request) -> None:
        loads = "model" in request.query_params
        if (loads or request.method not in _SAFE) and is_foreign(request.headers, origins):
            message = "expected a page of this server, or of an origin given with --cors-origin"
            raise ApiError(403, message, code="foreign_origin")

    return check
