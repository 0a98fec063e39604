"""Clients of `chan serve`, with the names of the library: `search`, `score`, `encode_texts`, `explain`, ...

A request that meets an overloaded or starting server (429, 503), or no server at all, is sent again after the time that
the server asks for and a random part of a time that doubles. calls.py has the methods and decides that.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from ..runtime.extras import needs
from . import bodies, calls
from .calls import Call, Exchange, Pages

P = ParamSpec("P")
T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., object])

with needs("httpx", "a client of chan serve", "serve"):
    import httpx

Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)


class _Connection(Generic[Http]):
    """What both clients are made with."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        gallery: str | None = None,
        timeout: float = 30,
        retries: int = 4,
        http: Http | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._api_key = api_key
        self._gallery = gallery
        self._retries = retries
        self._mine = http is None
        self._http: Http = self._open(timeout) if http is None else http

    def _open(self, timeout: float) -> Http:
        raise NotImplementedError

    def _must_ask_name(self, call: Call[Any]) -> bool:
        """Whether a call can only be sent once the server has named its only gallery."""
        return call.about(self._gallery).needs_name

    def _exchange(self, call: Call[T]) -> Exchange[T]:
        return Exchange(call.about(self._gallery), self._url, self._api_key, self._retries)


def _sync(call: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    def method(client: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return client._send(call(*args, **kwargs))

    return _described(method, call)


def _async(call: Callable[P, Call[T]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    async def method(client: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await client._send(call(*args, **kwargs))

    return _described(method, call)


def _sync_pages(call: Callable[P, Pages]) -> Callable[Concatenate[Client, P], Iterator[bodies.ListedRow]]:
    def method(client: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[bodies.ListedRow]:
        return client._pages(call(*args, **kwargs))

    return _described(method, call)


def _async_pages(call: Callable[P, Pages]) -> Callable[Concatenate[AsyncClient, P], AsyncIterator[bodies.ListedRow]]:
    def method(client: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[bodies.ListedRow]:
        return client._pages(call(*args, **kwargs))

    return _described(method, call)


def _described(method: Method, call: Callable[..., object]) -> Method:
    """Give a method the name, documentation and parameters of the function that makes its calls."""
    signature = inspect.signature(call)
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    result = str(signature.return_annotation).removeprefix("Call[").removesuffix("]")
    result = "Iterator[bodies.ListedRow]" if result == "Pages" else result
    described = signature.replace(parameters=[itself, *signature.parameters.values()], return_annotation=result)
    method.__name__, method.__doc__ = call.__name__, call.__doc__
    vars(method)["__signature__"] = described
    return method


class Client(_Connection[httpx.Client]):
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

    search = _sync(calls.search)
    encode_texts = _sync(calls.encode_texts)
    encode_pictures = _sync(calls.encode_pictures)
    score = _sync(calls.score)
    explain = _sync(calls.explain)
    galleries = _sync(calls.galleries)
    picture = _sync(calls.picture)
    rows = _sync_pages(calls.rows)
    add = _sync(calls.add)
    relabel = _sync(calls.relabel)
    delete = _sync(calls.delete)

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

    def _open(self, timeout: float) -> httpx.Client:
        return httpx.Client(timeout=timeout)

    def _send(self, call: Call[T]) -> T:
        if self._must_ask_name(call):
            self._gallery = calls.only_name(self.galleries())
        exchange = self._exchange(call)
        while (wait := exchange.after(self._try(exchange.request))) is not None:
            time.sleep(wait)
        return exchange.result

    def _pages(self, pages: Pages) -> Iterator[bodies.ListedRow]:
        following: Pages | None = pages
        while following is not None:
            page = self._send(following)
            yield from page.rows
            following = following.after(page)

    def _try(self, request: Mapping[str, Any]) -> httpx.Response | httpx.TransportError:
        try:
            return self._http.request(**request)
        except httpx.TransportError as error:
            return error


class AsyncClient(_Connection[httpx.AsyncClient]):
    """`Client` for asyncio: the same methods, to be awaited, and `rows` for `async for`. Close it by `async with`."""

    search = _async(calls.search)
    encode_texts = _async(calls.encode_texts)
    encode_pictures = _async(calls.encode_pictures)
    score = _async(calls.score)
    explain = _async(calls.explain)
    galleries = _async(calls.galleries)
    picture = _async(calls.picture)
    rows = _async_pages(calls.rows)
    add = _async(calls.add)
    relabel = _async(calls.relabel)
    delete = _async(calls.delete)

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

    def _open(self, timeout: float) -> httpx.AsyncClient:
        return httpx.AsyncClient(timeout=timeout)

    async def _send(self, call: Call[T]) -> T:
        if self._must_ask_name(call):
            self._gallery = calls.only_name(await self.galleries())
        exchange = self._exchange(call)
        while (wait := exchange.after(await self._try(exchange.request))) is not None:
            await asyncio.sleep(wait)
        return exchange.result

    async def _pages(self, pages: Pages) -> AsyncIterator[bodies.ListedRow]:
        following: Pages | None = pages
        while following is not None:
            page = await self._send(following)
            for row in page.rows:
                yield row
            following = following.after(page)

    async def _try(self, request: Mapping[str, Any]) -> httpx.Response | httpx.TransportError:
        try:
            return await self._http.request(**request)
        except httpx.TransportError as error:
            return error
