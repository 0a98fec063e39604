"""Errors as `application/problem+json` (RFC 9457): one table of statuses, one form."""

from __future__ import annotations

import http
import random

import msgspec
from starlette.responses import Response

from ..runtime.errors import (
    ChanError,
    GalleryIncomplete,
    GalleryLocked,
    GalleryMissing,
    InputError,
    MissingExtra,
    TensorError,
    shortened,
)
from .bodies import Problem

MEDIA_TYPE = "application/problem+json"
# The first class that an error is an instance of decides its status; every other ChanError is the server's fault.
_STATUS: tuple[tuple[type[ChanError], int], ...] = (
    (InputError, 422),
    (GalleryLocked, 409),
    (GalleryMissing, 503),
    (GalleryIncomplete, 503),
    (MissingExtra, 501),
    (ChanError, 500),
)


class Refusal(Exception):
    """A request that the server does not carry out.

    Args:
        status: of the answer.
        detail: what is wrong, and what to do.
        reason: one word for metrics and for the problem's type.
        headers: to add to the answer.
    """

    def __init__(self, status: int, reason: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.headers = headers or {}


def new_request_id() -> str:
    """An id for a request that brings none of its own."""
    return f"{random.getrandbits(128):032x}"


def overloaded(detail: str) -> Refusal:
    """429: too much is at work; the client should try again after a second."""
    return Refusal(429, "overloaded", detail, {"Retry-After": "1"})


def unavailable(reason: str, detail: str, seconds: int = 1) -> Refusal:
    """503: the server cannot do this now."""
    return Refusal(503, reason, detail, {"Retry-After": str(seconds)})


def retry_headers(status: int) -> dict[str, str]:
    """Headers of an answer that carries an error of the library with this status."""
    return {"Retry-After": "1"} if status == 503 else {}


def problem_of(error: Exception, request_id: str, places: dict[str, str] | None = None) -> Problem:
    """The problem that an error is.

    Args:
        error: of the library, a Refusal, or any other, about which a client learns nothing.
        request_id: of the request.
        places: folders of this server -> what to call them in place of their paths.
    """
    if isinstance(error, Refusal):
        return _problem(error.status, error.reason, str(error), request_id)
    if not isinstance(error, ChanError):
        detail = "the server failed; its log has the reason under this request id"
        return _problem(500, "internal", detail, request_id)
    status = next(status for kind, status in _STATUS if isinstance(error, kind))
    detail = str(error)
    for place, name in (places or {}).items():
        detail = detail.replace(place, name)
    problem = _problem(status, type(error).__name__, detail, request_id)
    problem.error = type(error).__name__
    if isinstance(error, TensorError):
        problem.tensor, problem.rule, problem.value = error.tensor, error.rule, shortened(str(error.value))
    if isinstance(error, MissingExtra):
        problem.module, problem.extra = error.module, error.extra
    return problem


def problem_response(problem: Problem, headers: dict[str, str] | None = None) -> Response:
    """The answer that carries a problem."""
    return Response(msgspec.json.encode(problem), problem.status, headers, media_type=MEDIA_TYPE)


def _problem(status: int, reason: str, detail: str, request_id: str) -> Problem:
    title = http.HTTPStatus(status).phrase
    return Problem(f"urn:chan-rt:problem:{reason}", title, status, shortened(detail), request_id)
