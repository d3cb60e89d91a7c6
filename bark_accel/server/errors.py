"""Errors as OpenAI's API has them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from bark_accel import DeadlineExceeded, EngineBusy, EngineClosed

from .replicas.request import ReplicaDied

logger = logging.getLogger("bark_accel.server")


class ErrorDetail(BaseModel):
    """The reason of a refusal."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The error object of the API."""

    error: ErrorDetail


class ApiError(Exception):
    """A refusal: an HTTP status, and what the error object says."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        detail = ErrorDetail(message=self.message, type=_kind(self.status), param=self.param, code=self.code)
        return ErrorBody(error=detail).model_dump()

    def response(self) -> JSONResponse:
        """The answer to the request."""
        return JSONResponse(self.body, self.status, self.headers)


def _kind(status: int) -> str:
    if status == 429:
        return "rate_limit_exceeded"
    if status == 401:
        return "authentication_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def body_too_large(max_bytes: int) -> ApiError:
    """The refusal of a long body."""
    return ApiError(413, f"expected a body of at most {max_bytes} bytes, got a longer one", code="body_too_large")


def shutting_down() -> ApiError:
    """The refusal of a server that ends."""
    return ApiError(503, "the server is shutting down", code="shutting_down", headers={"Retry-After": "5"})


def invalid_value(errors: Sequence[Any], whole: str, *, inside: int = 1) -> ApiError:
    """The first of pydantic's errors, with the field's name.

    Parameters
    ----------
    errors : sequence
        As a ValidationError has them.
    whole : str
        The name where it is no field's.
    inside : int
        Parts of a place before the field's name.
    """
    # Beyond the fields' names are pydantic's own, of one of several types.
    fields = takewhile(lambda part: isinstance(part, int) or (part.islower() and part.isidentifier()), errors[0]["loc"])
    place = ".".join(str(part) for part in [*fields][inside:]) or None
    return ApiError(400, f"{place or whole}: {errors[0]['msg']}", code="invalid_value", param=place)


def as_api_error(error: Exception) -> ApiError:
    """Tell what an exception of the engine, or a bug, means to a client."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, (DeadlineExceeded, TimeoutError)):
        return ApiError(504, "the request was not done within the server's deadline", code="deadline_exceeded")
    if isinstance(error, EngineBusy):
        return ApiError(429, "the server has as many requests as it takes", code="busy", headers={"Retry-After": "1"})
    if isinstance(error, EngineClosed):
        return shutting_down()
    if isinstance(error, ReplicaDied):
        return ApiError(500, "the process that generated this sound ended; try again", code="replica_died")
    logger.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed; its log says why", code="internal_error")


def install_handlers(app: FastAPI) -> None:
    """Answer every error with the error object."""

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return invalid_value(error.errors(), "body").response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 413:
            return body_too_large(request.app.state.server.settings.max_body_bytes).response()
        return ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {})).response()

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()
