"""What happens to every request: its id, the key, a place among those at work, headers, problems, one log line."""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..runtime.errors import ChanError
from .logs import FACTS
from .problems import Refusal, overloaded, problem_of, problem_response, unavailable
from .state import State

_log = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
OPEN_PATHS = ("/livez", "/readyz")


class Guard:
    """ASGI middleware around the routes."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["request_id"] = request_id
        begin = time.perf_counter()
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = MutableHeaders(scope=message)
                added["x-request-id"] = request_id
                added["X-Content-Type-Options"] = "nosniff"
                added["Referrer-Policy"] = "no-referrer"
                added.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
            await send(message)

        api = scope["path"].startswith("/v1/")
        counted = False
        try:
            self._check_key(scope["path"], headers)
            if api:
                self._admit()
                counted = True
                self._state.at_work += 1
            await self._app(scope, receive, watched)
        except Exception as error:
            problem = problem_of(_as_known(error), request_id, self._state.galleries.places)
            if problem.status >= 500:
                _log.log(
                    logging.WARNING if isinstance(error, Refusal) else logging.ERROR,
                    "request %s failed: %s",
                    request_id,
                    error,
                    exc_info=None if isinstance(error, Refusal | ChanError) else error,
                )
            if not status:
                await problem_response(problem, getattr(error, "headers", None))(scope, receive, watched)
        finally:
            self._state.at_work -= counted
        seconds = time.perf_counter() - begin
        facts = {
            "request_id": request_id,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "milliseconds": round(seconds * 1000, 2),
        }
        _log.info("answered", extra={FACTS: facts})

    def _admit(self) -> None:
        """Refusal where the server cannot take another request."""
        state = self._state
        if not state.ready or state.draining:
            raise unavailable("draining" if state.draining else "loading", "the server is not ready", 5)
        if state.at_work >= state.settings.limits.requests:
            raise overloaded(f"{state.at_work} requests are at work, the most that are taken at once")

    def _check_key(self, path: str, headers: Headers) -> None:
        """Refusal unless the request presents the key. The page holds no data and asks for the key itself."""
        key = self._state.settings.api_key
        if key is None or path in OPEN_PATHS or path == "/" or path.startswith("/page/"):
            return
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else headers.get("api-key", "")
        if not hmac.compare_digest(given.encode(), key.encode()):
            detail = "the request must have the API key, in `Authorization: Bearer KEY` or `api-key: KEY`"
            raise Refusal(401, "key", detail, {"WWW-Authenticate": "Bearer"})


def _as_known(error: Exception) -> Exception:
    """Starlette's own errors (no such path, no such method) as refusals."""
    if isinstance(error, HTTPException):
        reasons = {404: ("path", "no such path"), 405: ("method", "the path does not have this method")}
        reason, detail = reasons.get(error.status_code, ("request", error.detail))
        return Refusal(error.status_code, reason, detail)
    return error
