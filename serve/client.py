"""Clients of `chan serve`, with the names of the library: `search`, `score`, `encode_texts`, `explain`, ...

A request that meets an overloaded or starting server (429, 503), or no server at all, is sent again after the time that
the server asks for and a random part of a time that doubles.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..runtime.embeddings import Embeddings
from ..runtime.extras import needs
from . import bodies, calls
from .calls import Call, Picture

T = TypeVar("T")

with needs("httpx", "a client of chan serve", "serve"):
    import httpx


class Client:
    """A client that waits for each answer; may be used from several threads. Close it, best by `with`.

    Args:
        url: of the server.
        api_key: where the server asks for one.
        gallery: the gallery that calls are about unless they name another; None for a server's only one.
        timeout: seconds to wait for a connection, and for each part of an answer.
        retries: how often a request is sent again.
        http: an `httpx.Client` to send with, for proxies and certificates; the caller closes it.

    Every method raises the library's own errors as the server had them (`InputError`, `TensorError`, ...), and
    `RequestRefused` for what only a server refuses.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        gallery: str | None = None,
        timeout: float = 30,
        retries: int = 4,
        http: httpx.Client | None = None,
    ) -> None:
        self._gallery = gallery
        self._retries = retries
        self._url = url.rstrip("/")
        self._headers = calls.headers(api_key)
        self._mine = http is None
        self._http = http or httpx.Client(timeout=timeout)

    def search(
        self,
        captions: Sequence[str] | None = None,
        k: int = 10,
        *,
        pictures: Sequence[Picture] | None = None,
        embeddings: Embeddings | None = None,
        where: Mapping[str, Any] | None = None,
        ids: Sequence[str] | None = None,
        off: Sequence[int] = (),
        gallery: str | None = None,
    ) -> list[bodies.Result]:
        """The k best rows for each query, as `Gallery.search`; give captions, pictures or embeddings."""
        call = calls.search(captions, pictures, embeddings, k, where, ids, off, gallery or self._gallery)
        return self._send(call)

    def encode_texts(self, captions: Sequence[str], *, gallery: str | None = None) -> Embeddings:
        """Encode captions, as `Matcher.encode_texts`."""
        return self._send(calls.encode(captions, None, gallery or self._gallery))

    def encode_pictures(self, pictures: Sequence[Picture], *, gallery: str | None = None) -> Embeddings:
        """Encode picture files or their bytes, as `Matcher.encode_pictures`."""
        return self._send(calls.encode(None, pictures, gallery or self._gallery))

    def score(
        self,
        captions: Sequence[str] | None = None,
        pictures: Sequence[Picture] | None = None,
        *,
        ids: Sequence[str] | None = None,
        gallery: str | None = None,
    ) -> NDArray[np.float32]:
        """Scores [I, C] of images and captions; `ids` are rows of the gallery in place of its side."""
        return self._send(calls.score(captions, pictures, ids, gallery or self._gallery))

    def explain(
        self,
        caption: str | None = None,
        *,
        picture: Picture | None = None,
        id: str | None = None,
        gallery: str | None = None,
    ) -> bodies.ExplainResponse:
        """Which region each word chose, as `Matcher.explain`; `id` is a row of the gallery in place of its side."""
        return self._send(calls.explain(caption, picture, id, gallery or self._gallery))

    def galleries(self) -> list[bodies.GalleryInfo]:
        """The galleries that are served."""
        return self._send(calls.galleries())

    def picture(self, id: str, side: int = 640, *, gallery: str | None = None) -> bytes:
        """The picture of a row as JPEG, at most about `side` pixels long."""
        return self._send(calls.picture(id, side, gallery or self._name()))

    def add(
        self,
        ids: Sequence[str],
        embeddings: Embeddings | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        *,
        captions: Sequence[str] | None = None,
        pictures: Sequence[Picture] | None = None,
        overwrite: bool = False,
        gallery: str | None = None,
    ) -> bodies.RowsResponse:
        """Add rows, as `GalleryWriter.add`; give embeddings, captions or pictures."""
        name = gallery or self._name()
        return self._send(calls.add(name, ids, captions, pictures, embeddings, metadata, overwrite))

    def delete(self, ids: Sequence[str], *, gallery: str | None = None) -> bodies.RowsResponse:
        """Delete rows, as `GalleryWriter.delete`."""
        return self._send(calls.delete(gallery or self._name(), ids))

    def close(self) -> None:
        """Close the connections."""
        if self._mine:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _name(self) -> str:
        self._gallery = self._gallery or calls.only_name(self.galleries())
        return self._gallery

    def _send(self, call: Call[T]) -> T:
        content, attempt = call.content(), 0
        while True:
            try:
                answer = self._http.request(
                    call.method, self._url + call.path, params=call.query, content=content, headers=self._headers
                )
            except httpx.ConnectError as error:
                if attempt >= self._retries:
                    raise calls.no_server(self._url, error) from error
                retry_after = None
            else:
                if answer.status_code not in calls.RETRIED or attempt >= self._retries:
                    return calls.result_of(call, answer.status_code, answer.content)
                retry_after = answer.headers.get("retry-after")
            time.sleep(calls.pause(attempt, retry_after))
            attempt += 1


class AsyncClient:
    """`Client` for asyncio: the same methods, to be awaited. Close it, best by `async with`."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        gallery: str | None = None,
        timeout: float = 30,
        retries: int = 4,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._gallery = gallery
        self._retries = retries
        self._url = url.rstrip("/")
        self._headers = calls.headers(api_key)
        self._mine = http is None
        self._http = http or httpx.AsyncClient(timeout=timeout)

    async def search(
        self,
        captions: Sequence[str] | None = None,
        k: int = 10,
        *,
        pictures: Sequence[Picture] | None = None,
        embeddings: Embeddings | None = None,
        where: Mapping[str, Any] | None = None,
        ids: Sequence[str] | None = None,
        off: Sequence[int] = (),
        gallery: str | None = None,
    ) -> list[bodies.Result]:
        """See `Client.search`."""
        call = calls.search(captions, pictures, embeddings, k, where, ids, off, gallery or self._gallery)
        return await self._send(call)

    async def encode_texts(self, captions: Sequence[str], *, gallery: str | None = None) -> Embeddings:
        """See `Client.encode_texts`."""
        return await self._send(calls.encode(captions, None, gallery or self._gallery))

    async def encode_pictures(self, pictures: Sequence[Picture], *, gallery: str | None = None) -> Embeddings:
        """See `Client.encode_pictures`."""
        return await self._send(calls.encode(None, pictures, gallery or self._gallery))

    async def score(
        self,
        captions: Sequence[str] | None = None,
        pictures: Sequence[Picture] | None = None,
        *,
        ids: Sequence[str] | None = None,
        gallery: str | None = None,
    ) -> NDArray[np.float32]:
        """See `Client.score`."""
        return await self._send(calls.score(captions, pictures, ids, gallery or self._gallery))

    async def explain(
        self,
        caption: str | None = None,
        *,
        picture: Picture | None = None,
        id: str | None = None,
        gallery: str | None = None,
    ) -> bodies.ExplainResponse:
        """See `Client.explain`."""
        return await self._send(calls.explain(caption, picture, id, gallery or self._gallery))

    async def galleries(self) -> list[bodies.GalleryInfo]:
        """See `Client.galleries`."""
        return await self._send(calls.galleries())

    async def picture(self, id: str, side: int = 640, *, gallery: str | None = None) -> bytes:
        """See `Client.picture`."""
        return await self._send(calls.picture(id, side, gallery or await self._name()))

    async def add(
        self,
        ids: Sequence[str],
        embeddings: Embeddings | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        *,
        captions: Sequence[str] | None = None,
        pictures: Sequence[Picture] | None = None,
        overwrite: bool = False,
        gallery: str | None = None,
    ) -> bodies.RowsResponse:
        """See `Client.add`."""
        name = gallery or await self._name()
        return await self._send(calls.add(name, ids, captions, pictures, embeddings, metadata, overwrite))

    async def delete(self, ids: Sequence[str], *, gallery: str | None = None) -> bodies.RowsResponse:
        """See `Client.delete`."""
        return await self._send(calls.delete(gallery or await self._name(), ids))

    async def aclose(self) -> None:
        """Close the connections."""
        if self._mine:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _name(self) -> str:
        self._gallery = self._gallery or calls.only_name(await self.galleries())
        return self._gallery

    async def _send(self, call: Call[T]) -> T:
        content, attempt = call.content(), 0
        while True:
            try:
                answer = await self._http.request(
                    call.method, self._url + call.path, params=call.query, content=content, headers=self._headers
                )
            except httpx.ConnectError as error:
                if attempt >= self._retries:
                    raise calls.no_server(self._url, error) from error
                retry_after = None
            else:
                if answer.status_code not in calls.RETRIED or attempt >= self._retries:
                    return calls.result_of(call, answer.status_code, answer.content)
                retry_after = answer.headers.get("retry-after")
            await asyncio.sleep(calls.pause(attempt, retry_after))
            attempt += 1
