"""What happens to every request: its id, the key, a place among those at work, headers, problems, one log line."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..runtime.counts import counted
from ..runtime.errors import ChanError
from .logs import FACTS
from .problems import Refusal, new_request_id, overloaded, problem_of, problem_response, retry_headers, unavailable
from .reading import CLOSE, READING, body_size
from .state import State

_log = logging.getLogger(__name__)
_HOST = re.compile(r"(\[[0-9A-Za-z:.%_~-]*\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(:\d*)?", re.ASCII)  # RFC 9110, 7.2
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
ROUTE = "chan_rt.route"  # key of an ASGI scope: the path of the operation, for metrics
TIMES = ("x-queue-time", "x-inference-time", "x-search-time")
LOCAL = ("127.0.0.1", "localhost", "::1")
OPEN_PATHS = ("/livez", "/readyz")


class Guard:
    """ASGI middleware around the routes."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else new_request_id()
        scope["app"] = self._app  # so that starlette's routes raise their refusals
        sharing = "cross-origin" if self._state.settings.origins else "same-origin"
        begin = time.perf_counter()
        facts: dict[str, Any] = {"request_id": request_id, "method": scope["method"], "path": scope["path"]}

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts["status"] = message["status"]
                added = MutableHeaders(scope=message)
                added["x-request-id"] = request_id
                if self._state.draining or scope["http_version"] == "1.0":
                    added["Connection"] = "close"
                added["X-Content-Type-Options"] = "nosniff"
                added["Referrer-Policy"] = "no-referrer"
                added["Cross-Origin-Resource-Policy"] = sharing
                added.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
                facts.update({name[2:]: float(added[name]) for name in TIMES if name in added})
            await send(message)

        with self._state.tracing.request(headers, facts):
            try:
                await self._admitted(scope, headers, receive, watched)
            except ClientDisconnect:  # before its body was there: nobody waits for an answer
                facts["reason"] = "left"
            except asyncio.CancelledError:  # the server ends
                cut = unavailable("draining", "the server ends before the request is done; nothing was changed", 5)
                cut.headers.update(CLOSE)
                await self._refuse(cut, facts, scope, receive, watched)
            except Exception as error:
                await self._refuse(error, facts, scope, receive, watched)
            seconds = time.perf_counter() - begin
            facts["route"] = scope.get(ROUTE, "other")
            facts["milliseconds"] = round(seconds * 1000, 2)
        self._state.metrics.answered(facts["route"], facts.get("status", 499), seconds)
        _log.info("answered", extra={FACTS: facts})

    async def _admitted(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        """Pass a request on if it has the key and there is room for it."""
        self._check_host(scope["http_version"], headers)
        self._check_origin(scope["method"], headers)
        self._check_key(scope["path"], headers)
        if not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        state = self._state
        if not state.ready or state.draining:
            raise unavailable("draining" if state.draining else "loading", "the server is not ready", 5)
        if state.at_work >= state.settings.limits.requests:
            raise overloaded(
                f"{counted(state.at_work, 'request is', 'requests are')} at work, the most that are taken at once"
            )
        size = body_size(headers, state.settings.limits)
        if state.body_bytes + size > state.settings.limits.bodies:
            raise overloaded(f"the requests at work have {state.body_bytes} bytes, and no room for {size} more")
        state.at_work += 1
        state.body_bytes += size
        state.report_work()
        seconds = state.settings.limits.seconds
        try:
            async with asyncio.timeout(seconds):
                await self._app(scope, receive, send)
        except TimeoutError:
            if scope.get(READING):
                raise Refusal(408, "slow", f"the body must arrive within {seconds} seconds", CLOSE) from None
            raise unavailable("timeout", f"the request took longer than {seconds} seconds") from None
        finally:
            state.at_work -= 1
            state.body_bytes -= size
            state.report_work()

    def _check_host(self, version: str, headers: Headers) -> None:
        """Refusal of a request that names no host or several, or to a local server without a key another host.

        A browser sends the last for a page whose name was made to lead here after it was loaded (DNS rebinding).
        """
        hosts = headers.getlist("host")
        if len(hosts) != 1 and (hosts or version != "1.0"):  # RFC 9112, 3.2
            raise Refusal(400, "host", f"the request must have one Host header, got {len(hosts)}")
        if hosts and not _HOST.fullmatch(hosts[0]):
            raise Refusal(400, "host", f"the Host header must be a host, and perhaps a port, got {hosts[0][:60]!r}")
        settings = self._state.settings
        if settings.api_key is not None or settings.host not in LOCAL:
            return
        name = re.sub(r":\d*$", "", headers.get("host", "")).strip("[]").lower()
        if name not in LOCAL:
            raise Refusal(421, "host", f"the host must be {', '.join(LOCAL)} while there is no API key, got {name!r}")

    def _check_origin(self, method: str, headers: Headers) -> None:
        """Refusal of what a page of another origin sends: a browser asks before most of it, but not before all."""
        origin, allowed = headers.get("origin"), self._state.settings.origins
        if origin is None or method in ("GET", "HEAD") or "*" in allowed or origin in allowed:
            return
        place = origin.partition("://")[2].lower()
        if not place or place != headers.get("host", "").lower():
            raise Refusal(403, "origin", f"pages of {origin} may not use this server; --cors allows an origin")

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

    async def _refuse(
        self, error: Exception, facts: dict[str, Any], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer with the problem that an error is, and log what is the server's fault."""
        known = _as_refusal(error)
        places = self._state.galleries.places if isinstance(known, ChanError) else {}
        problem = problem_of(known, facts["request_id"], places)
        facts["reason"] = problem.type.rpartition(":")[2]
        self._state.metrics.failures.labels(facts["reason"]).inc()
        if problem.status >= 500 and not isinstance(known, Refusal):
            trace = None if isinstance(known, ChanError) else known
            _log.error("%s", known, exc_info=trace, extra={FACTS: {"request_id": facts["request_id"]}})
        if "status" not in facts:  # otherwise the answer has begun, and can only be cut off
            headers = known.headers if isinstance(known, Refusal) else retry_headers(problem.status)
            await problem_response(problem, headers)(scope, receive, send)


def _as_refusal(error: Exception) -> Exception:
    """Starlette's own error, a method that the path does not have, as a refusal."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        headers = dict(error.headers or {})
        has = f"; it has {headers['Allow']}" if "Allow" in headers else ""
        return Refusal(405, "method", f"the path does not have this method{has}", headers)
    return error
