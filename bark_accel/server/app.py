"""The application, as any ASGI server runs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from anyio import to_thread
from fastapi import Depends, FastAPI
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from bark_accel import __version__

from .access import KeyRing, NeedsKey, own_pages_only
from .catalogue_routes import catalogue_routes
from .error_objects import ErrorObjects
from .errors import as_api_error, install_handlers
from .settings import Settings
from .socket import socket_routes
from .speech_routes import speech_routes
from .state import State
from .status_routes import status_routes

# For encoders and tokenizers. Each keeps memory of its own: dozens, anyio's default, only make the process grow.
_THREADS = 4
_LOAD_AGAIN_S = 30.0


def create_app(settings: Settings) -> FastAPI:
    """Make the server's application; the first model is loaded when it starts."""
    state = State.of(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = _THREADS
        loading = asyncio.create_task(_load_first(state))
        try:
            yield
        finally:
            state.ready = False
            loading.cancel()
            with suppress(asyncio.CancelledError):
                await loading
            await state.models.close()
            state.voices.close()

    ring = KeyRing(settings.api_keys)
    needs_key = NeedsKey(ring)
    guards = [Depends(needs_key), Depends(own_pages_only(settings.cors_origins))]
    app = FastAPI(
        title="bark_accel",
        version=__version__,
        description="Bark text-to-speech with OpenAI's API.",
        lifespan=lifespan,
        # Their pages load scripts of others.
        docs_url=None,
        redoc_url=None,
    )
    app.state.server = state
    install_handlers(app)
    app.include_router(speech_routes(state), dependencies=guards)
    app.include_router(socket_routes(state, ring))
    app.include_router(catalogue_routes(state), dependencies=guards)
    app.include_router(status_routes(state, needs_key))
    _limit(app, settings)
    return app


def _limit(app: FastAPI, settings: Settings) -> None:
    """Add the middleware, the innermost first."""
    if settings.hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*settings.hosts], www_redirect=False)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body_bytes)
    app.add_middleware(ErrorObjects, max_body_size=settings.max_body_bytes)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[*settings.cors_origins],
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type"],
            expose_headers=["x-bark-seed", "retry-after", "warning"],
        )


async def _load_first(state: State) -> None:
    """Load the default model; once more after a while where that fails, as where there is no network at boot."""
    while not state.ready:
        try:
            await state.models.get(state.models.default)
            state.ready, state.failure = True, None
        except Exception as error:
            state.failure = as_api_error(error).message
            await asyncio.sleep(_LOAD_AGAIN_S)
