"""HTTP connections with bounds that uvicorn leaves open: their number, and the time and size of a request's head.

A request's body and its answer are bounded elsewhere (reading.py, settings.py).
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .settings import Limits

HEAD_BYTES = 64 << 10  # of a request line with all its headers
KEEP_ALIVE = 60  # seconds that a connection may be idle between requests
_REFUSED = (
    b"HTTP/1.1 %s\r\ncontent-type: application/problem+json\r\ncontent-length: %d\r\nconnection: close\r\n%s\r\n%s"
)


def bounded_protocol(limits: Limits) -> type[HttpToolsProtocol]:
    """The protocol class with the limits of a server."""

    class BoundedProtocol(HttpToolsProtocol):
        """Closes connections over the limit, and those whose request head does not come in time."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._head: int | None = 0  # bytes of a request's head so far; None while there is none to come
            self._timer = self.loop.call_later(limits.seconds, self._too_slow)
            if len(self.connections) > limits.connections:
                self._refuse(b"503 Service Unavailable", b"connections", b"Retry-After: 1\r\n")

        def connection_lost(self, exc: Exception | None) -> None:
            self._timer.cancel()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            if self._head is not None:
                self._head += len(data)
            super().data_received(data)
            if self._head is not None and self._head > HEAD_BYTES:
                self._refuse(b"431 Request Header Fields Too Large", b"head")

        def on_message_begin(self) -> None:
            self._timer.cancel()
            self._timer = self.loop.call_later(limits.seconds, self._too_slow)
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._timer.cancel()
            self._head = None
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._head = 0
            super().on_message_complete()

        def timeout_keep_alive_handler(self) -> None:
            """Close an idle connection; one whose client does not read its answer is cut."""
            if self.transport.get_write_buffer_size():
                self.transport.abort()
            super().timeout_keep_alive_handler()

        def _too_slow(self) -> None:
            self._refuse(b"408 Request Timeout", b"slow")

        def _refuse(self, status: bytes, reason: bytes, headers: bytes = b"") -> None:
            if not self.transport.is_closing():
                code, _, title = status.partition(b" ")
                body = b'{"type":"urn:chan-rt:problem:%s","title":"%s","status":%s}' % (reason, title, code)
                self.transport.write(_REFUSED % (status, len(body), headers, body))
                self.transport.close()

    return BoundedProtocol


def protocol_options(limits: Limits) -> dict[str, Any]:
    """Options of `uvicorn.Config` for these connections."""
    return {"http": bounded_protocol(limits), "ws": "none", "timeout_keep_alive": KEEP_ALIVE}
