"""Runs the application with uvicorn."""

from __future__ import annotations

import uvicorn

from .app import create_app
from .settings import Settings


def make_server(settings: Settings, host: str, port: int) -> uvicorn.Server:
    """A server of its own; SIGTERM and SIGINT let it finish what it has begun."""
    config = uvicorn.Config(
        create_app(settings),
        host=host,
        port=port,
        log_level="info",
        timeout_graceful_shutdown=round(settings.drain_s),
        server_header=False,
        ws_max_size=settings.max_body_bytes,
    )
    return uvicorn.Server(config)


def run(settings: Settings, host: str, port: int) -> None:
    """Serve until told to end."""
    make_server(settings, host, port).run()
