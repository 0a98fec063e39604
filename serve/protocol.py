"""HTTP connections with bounds that uvicorn leaves open: their number, and the time and size of a request's head.

A request's body and its answer are bounded elsewhere (reading.py, settings.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ..runtime.counts import counted
from .bodies import Problem
from .problems import Refusal, new_request_id, problem_of, problem_response, unavailable
from .reading import CLOSE
from .settings import Limits

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

HEAD_BYTES = 64 << 10  # of a request line with all its headers
_OFFERS = (b"upgrade", b"http2-settings")
KEEP_ALIVE = 60  # seconds that a connection may be idle between requests
LINGER = 0.5  # seconds that an idle client has to close its side too, when the server ends


class BoundedProtocol(HttpToolsProtocol):
    """Closes connections over the limit, and those whose request head does not come in time.

    Args:
        limits: of the server.
        refused: told what has not become a request, once it is answered.
        of_uvicorn: what uvicorn gives its protocol.
    """

    def __init__(self, limits: Limits, refused: Callable[[Problem], None], **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._limits = limits
        self._refused = refused

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the head of a request, or refuse a connection over the limit."""
        super().connection_made(transport)
        self._head: int | None = 0  # bytes of a request's head so far; None while there is none to come
        self._refusal: Refusal | None = None  # of what came last; nothing is read any more
        self._timer = self.loop.call_later(self._limits.seconds, self._too_slow)
        self._unread: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None
        self._ended = False  # nothing is sent any more, and what comes is dropped
        if len(self.connections) > self._limits.connections:
            most = counted(self._limits.connections, "connection")
            self._refuse(unavailable("connections", f"{most} are open, the most that are taken at once"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting, and tell the request at work that its client is gone."""
        self._timer.cancel()
        if self._unread is not None:
            self._unread.cancel()
        if self._running is not None:  # uvicorn tells only the one that came last
            self._running.disconnected = True
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless it is dropped; a head must not become too large."""
        if self.transport.is_closing() or self._refusal is not None or self._ended:
            return
        if self._head is not None:
            self._head += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        if not self._head and self.cycle is not None and self.cycle.response_complete:
            # it was answered before its body came: what is left of that is dropped, and may never come
            self.timeout_keep_alive_task = self.loop.call_later(KEEP_ALIVE, self.timeout_keep_alive_handler)
        if self._head is not None and self._head > HEAD_BYTES:
            self._refuse(Refusal(431, "head", f"the head of a request must have at most {HEAD_BYTES} bytes, got more"))

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer a request that came whole before its client ended its side, and end the connection after that."""
        if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            return False
        self.cycle.keep_alive = False
        return True

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("")
        except httptools.HttpParserUpgrade as upgrade:
            if self.parser.get_method() == b"CONNECT":
                self.send_400_response("")
            else:
                self._parse(self._without_upgrade() + data[upgrade.args[0] :])

    def _without_upgrade(self) -> bytes:
        """The head of a request without its offer to speak HTTP/2 or websockets, for a new parser.

        The parser takes what follows such an offer for the other protocol, but it is the body of the request, as
        Java's client and `curl --http2` send it.
        """
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                value = b",".join(one for one in value.split(b",") if one.strip().lower() not in _OFFERS)
            if name not in _OFFERS:
                lines.append(b"%s: %s" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def on_message_begin(self) -> None:
        """Begin the time that the head of a request may take."""
        self._timer.cancel()
        self._timer = self.loop.call_later(self._limits.seconds, self._too_slow)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is there."""
        if self.parser.should_upgrade():
            return  # it is read again
        self._timer.cancel()
        self._head = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is there, and the next head may come."""
        if self.parser.should_upgrade():
            return
        self._head = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request, or with the refusal of what came after the last one."""
        if self._refusal is not None and not self.pipeline:
            self._answer(self._refusal)
        else:
            super().on_response_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def pause_writing(self) -> None:
        """Cut a connection whose client does not read its answers while later requests of it wait for that."""
        super().pause_writing()
        self._unread = self.loop.call_later(KEEP_ALIVE, self.transport.abort)

    def resume_writing(self) -> None:
        """Keep a connection whose client reads again."""
        if self._unread is not None:
            self._unread.cancel()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; one whose client does not read its answer is cut."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        """End an idle connection, and one at work after its answer.

        What an idle client sends meanwhile is read and dropped (RFC 9112, 9.6). The system answers bytes that come
        to a closed socket with a reset, for which the client loses answers that it has not read.
        """
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        elif not self.transport.is_closing() and not self._ended:
            self._ended = True
            self._timer.cancel()
            self._timer = self.loop.call_later(LINGER, self.transport.close)
            self.transport.write_eof()

    def _too_slow(self) -> None:
        self._refuse(Refusal(408, "slow", f"the head of a request must arrive within {self._limits.seconds} seconds"))

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; `msg` is not used."""
        self._refuse(Refusal(400, "http", "the request must be HTTP/1.1 or HTTP/1.0, but cannot be understood"))

    def _refuse(self, refusal: Refusal) -> None:
        """Answer what has not become a request, after the requests before it, and end the connection."""
        if self.cycle is None or self.cycle.response_complete:
            self._answer(refusal)
            return
        self._refusal = self._refusal or refusal
        if self.cycle.more_body:  # the refusal is of this request, whose body cannot come any more
            if self.pipeline:
                self.pipeline.popleft()
            else:
                self._answer(refusal)

    def _answer(self, refusal: Refusal) -> None:
        if not self.transport.is_closing():
            problem = problem_of(refusal, new_request_id())
            answer = problem_response(problem, {**refusal.headers, **CLOSE, "x-request-id": problem.request_id})
            lines = b"".join(b"%s: %s\r\n" % header for header in answer.raw_headers)
            status = f"HTTP/1.1 {problem.status} {problem.title}\r\n".encode()
            self.transport.write(status + lines + b"\r\n" + bytes(answer.body))
            self.transport.close()
            self._refused(problem)


def protocol_options(limits: Limits, refused: Callable[[Problem], None]) -> dict[str, Any]:
    """Options of `uvicorn.Config` for these connections; arguments as of `BoundedProtocol`."""
    return {"http": partial(BoundedProtocol, limits, refused), "ws": "none", "timeout_keep_alive": KEEP_ALIVE}
