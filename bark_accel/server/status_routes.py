"""The page, health and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from anyio import to_thread
from fastapi import APIRouter, Depends
from prometheus_client import generate_latest
from pydantic import BaseModel
from starlette.responses import HTMLResponse, Response

from .access import NeedsKey
from .errors import ApiError, ErrorBody
from .replicas.engine import Replica
from .state import State

_PAGE = Path(__file__).parent / "page.html"
# The page is one file and calls this server only.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "media-src blob:; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Status(BaseModel):
    """Answer of `/ready`."""

    status: Literal["ok"] = "ok"


class Replicas(BaseModel):
    """The processes of a model: how many there should be, are ready, and have ended by themselves."""

    expected: int
    ready: int
    deaths: int


class Health(BaseModel):
    """Answer of `/health`; degraded: a process has ended and no successor is ready yet, or an engine has failed."""

    status: Literal["ok", "degraded"]
    replicas: dict[str, Replicas] = {}


def status_routes(state: State, needs_key: NeedsKey) -> APIRouter:
    """The routes that say how the server is; all but the figures are open to everybody."""
    router = APIRouter(tags=["server"])

    @router.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        headers = {"content-security-policy": _POLICY, "referrer-policy": "no-referrer"}
        return HTMLResponse(_PAGE.read_text(), headers={**headers, "x-content-type-options": "nosniff"})

    @router.get("/health")
    async def health() -> Health:
        """Tell that the process answers, and how many of its replicas do."""
        replicas = {model.name: _count(model.replicas) for model in state.models.loaded() if model.replicas}
        whole = all(counted.ready == counted.expected for counted in replicas.values())
        whole &= not any(model.failed for model in state.models.loaded())
        return Health(status="ok" if whole else "degraded", replicas=replicas)

    @router.get("/ready", responses={503: {"model": ErrorBody}})
    async def ready() -> Status:
        """Tell that the first model is loaded and has spoken: at first all of its replicas, from then on any."""
        if not state.ready:
            raise ApiError(503, state.failure or "the model is being loaded", code="not_ready")
        if any(model.replicas and not any(r.ready for r in model.replicas) for model in state.models.loaded()):
            raise ApiError(503, "no replica of a model is there; others are started", code="not_ready")
        if failed := [model.name for model in state.models.loaded() if model.failed]:
            message = f"the engine of {', '.join(failed)} has failed; the log says why; restart the server"
            raise ApiError(503, message, code="not_ready")
        return Status()

    @router.get("/metrics", dependencies=[Depends(needs_key)], response_class=Response)
    async def metrics() -> Response:
        """Figures in Prometheus' text format."""
        # In a thread: the kernel walks each replica's memory to count it.
        figures = await to_thread.run_sync(generate_latest, state.metrics.registry)
        return Response(figures, media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _count(replicas: list[Replica]) -> Replicas:
    ready, deaths = sum(replica.ready for replica in replicas), sum(replica.deaths for replica in replicas)
    return Replicas(expected=len(replicas), ready=ready, deaths=deaths)
