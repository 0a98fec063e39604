"""The methods of the clients, without a connection: what they send, how they read it, and when they send it again.

Both clients are made from these functions: where one returns a `Call` here, their methods return its result.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..runtime import errors
from ..runtime.embeddings import Embeddings
from . import bodies
from .packing import pack, unpack

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
Picture = str | Path | bytes
RETRIED = (429, 503)
_ROWS = "/v1/galleries/{gallery}/rows"


class RequestRefused(errors.ChanError):
    """The server refused a request for a reason of its own, or failed.

    Attributes:
        status: of the answer.
        reason: one word: `overloaded`, `key`, `read-only`, `payload`, ... (docs/serve.md).
        request_id: under which the server's log has it.
    """

    def __init__(self, detail: str, status: int, reason: str, request_id: str) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.request_id = request_id


@dataclass(frozen=True)
class Call(Generic[T]):
    """One call of a client's method.

    Attributes:
        method, path: of the request; `{gallery}` in the path stands for the gallery's name.
        read: makes the result from the body of the answer.
        gallery: that the call is about; None for the client's own, or a server's only one.
        body: sent as JSON.
        query: of the URL.
    """

    method: str
    path: str
    read: Callable[[bytes], T]
    gallery: str | None = None
    body: msgspec.Struct | None = None
    query: Mapping[str, str | list[str]] = field(default_factory=dict)

    @property
    def needs_name(self) -> bool:
        """Whether the gallery's name must be known before the call can be sent."""
        return self.gallery is None and "{gallery}" in self.path

    def about(self, gallery: str | None) -> Call[T]:
        """This call, about a gallery unless it names one itself."""
        return replace(self, gallery=self.gallery or gallery)


class Pages(Call[bodies.ListResponse]):
    """The first of the calls that together list rows."""

    def after(self, page: bodies.ListResponse) -> Pages | None:
        """The call for the page behind one; None behind the last."""
        return None if page.next is None else replace(self, query={**self.query, "after": page.next})


class Exchange(Generic[T]):
    """The requests and answers of one call, without a connection: what to send, and when to send it again.

    Args:
        call: the call.
        url: of the server.
        api_key: that it asks for, or None.
        retries: how often the request is sent again.

    Attributes:
        request: arguments of httpx's `request`.
        result: of the call, once `after` returned None.
    """

    result: T

    def __init__(self, call: Call[T], url: str, api_key: str | None, retries: int) -> None:
        headers = {"content-type": "application/json"}
        if api_key is not None:
            headers["authorization"] = f"Bearer {api_key}"
        if isinstance(call.body, bodies.Request):
            call.body.gallery = call.gallery
        content = None if call.body is None else msgspec.json.encode(call.body)
        path = call.path.format(gallery=quote(call.gallery or "", safe=""))
        self.request: dict[str, Any] = {
            "method": call.method, "url": url + path, "params": call.query, "content": content, "headers": headers,
        }  # fmt: skip
        self._call, self._url, self._retries = call, url, retries
        self._attempt = 0

    def after(self, answer: httpx.Response | httpx.TransportError) -> float | None:
        """Seconds to wait until the request is sent again; None where `result` is there.

        Args:
            answer: to the request, or why there is none. The request is sent again only where it was not sent at all.

        Raises:
            ChanError: what the answer carries; a RequestRefused where there is none.
        """
        last, retry_after = self._attempt >= self._retries, None
        if isinstance(answer, Exception):
            if not _is_unsent(answer):
                reason = str(answer) or type(answer).__name__
                raise RequestRefused(f"{self._url} did not answer: {reason}", 0, "connection", "") from answer
            if last:
                raise RequestRefused(f"no server answers at {self._url}: {answer}", 0, "connection", "") from answer
        elif answer.status_code not in RETRIED or last:
            if answer.status_code != 200:
                raise error_of(answer.status_code, answer.content)
            try:
                self.result = self._call.read(answer.content)
            except msgspec.MsgspecError as error:
                raise RequestRefused(f"{self._url} is no chan serve: {error}", 200, "unknown", "") from error
            return None
        else:
            retry_after = answer.headers.get("retry-after")
        self._attempt += 1
        return pause(self._attempt - 1, retry_after)


def _is_unsent(error: httpx.TransportError) -> bool:
    """Whether a request failed before there was a connection, so that sending it again does nothing twice."""
    import httpx

    return isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)


def error_of(status: int, content: bytes) -> errors.ChanError:
    """The library's error that an answer carries, or a RequestRefused."""
    try:
        problem = msgspec.json.decode(content, type=bodies.Problem)
    except msgspec.MsgspecError:
        return RequestRefused(f"the server answered with status {status}", status, "unknown", "")
    if problem.error == "TensorError" and problem.tensor is not None:
        return errors.TensorError(problem.tensor, problem.rule or "", problem.value)
    if problem.error == "MissingExtra":
        return errors.MissingExtra(problem.detail, problem.module or "", problem.extra or "")
    kind = getattr(errors, problem.error or "", None)
    if isinstance(kind, type) and issubclass(kind, errors.ChanError):
        return kind(problem.detail)
    reason = problem.type.rpartition(":")[2]
    return RequestRefused(problem.detail, problem.status, reason, problem.request_id)


def only_name(found: Sequence[bodies.GalleryInfo]) -> str:
    """The name of a server's only gallery."""
    if len(found) != 1:
        raise errors.InputError(f"gallery must be one of {', '.join(one.name for one in found)}, got none")
    return found[0].name


def pause(attempt: int, retry_after: str | None) -> float:
    """Seconds to wait before an attempt: what the server asks for, and a random part that doubles each time."""
    asked = float(retry_after) if retry_after is not None and retry_after.isdecimal() else 0.0
    return min(asked, 60.0) + random.uniform(0, min(0.1 * 2 ** min(attempt, 10), 5.0))


def search(
    captions: Sequence[str] | None = None,
    k: int = 10,
    *,
    pictures: Sequence[Picture] | None = None,
    embeddings: Embeddings | None = None,
    like: str | None = None,
    where: Mapping[str, Any] | None = None,
    ids: Sequence[str] | None = None,
    off: Sequence[int] = (),
    gallery: str | None = None,
) -> Call[list[bodies.Result]]:
    """The k best rows for each query, as `Gallery.search`; give captions, pictures, embeddings or `like`.

    like: the id of a row that is the query; it is not among the hits.
    """
    body = bodies.SearchRequest(
        captions=_list(captions),
        pictures=_files(pictures),
        embeddings=None if embeddings is None else pack(embeddings),
        like=like,
        k=k,
        where=None if where is None else dict(where),
        ids=_list(ids),
        off=list(off),
    )
    return Call("POST", "/v1/search", lambda content: _decode(content, bodies.SearchResponse).results, gallery, body)


def encode_texts(captions: Sequence[str], *, gallery: str | None = None) -> Call[Embeddings]:
    """Encode captions, as `Matcher.encode_texts`."""
    return _encode(bodies.EncodeRequest(captions=_list(captions)), gallery)


def encode_pictures(pictures: Sequence[Picture], *, gallery: str | None = None) -> Call[Embeddings]:
    """Encode picture files or their bytes, as `Matcher.encode_pictures`."""
    return _encode(bodies.EncodeRequest(pictures=_files(pictures)), gallery)


def score(
    captions: Sequence[str] | None = None,
    pictures: Sequence[Picture] | None = None,
    *,
    ids: Sequence[str] | None = None,
    gallery: str | None = None,
) -> Call[NDArray[np.float32]]:
    """Scores [I, C] of images and captions; `ids` are rows of the gallery in place of its side."""
    body = bodies.ScoreRequest(captions=_list(captions), pictures=_files(pictures), ids=_list(ids))

    def read(content: bytes) -> NDArray[np.float32]:
        return np.array(_decode(content, bodies.ScoreResponse).scores, np.float32)

    return Call("POST", "/v1/score", read, gallery, body)


def explain(
    caption: str | None = None,
    *,
    picture: Picture | None = None,
    id: str | None = None,
    gallery: str | None = None,
) -> Call[bodies.ExplainResponse]:
    """Which region each word chose, as `Matcher.explain`; `id` is a row of the gallery in place of its side."""
    body = bodies.ExplainRequest(caption=caption, picture=None if picture is None else _file(picture), id=id)
    return Call("POST", "/v1/explain", lambda content: _decode(content, bodies.ExplainResponse), gallery, body)


def galleries() -> Call[list[bodies.GalleryInfo]]:
    """The galleries that are served."""
    return Call("GET", "/v1/galleries", lambda content: _decode(content, bodies.GalleriesResponse).galleries)


def picture(id: str, side: int = 640, *, gallery: str | None = None) -> Call[bytes]:
    """The picture of a row as JPEG, at most about `side` pixels long."""
    return Call("GET", "/v1/galleries/{gallery}/pictures", bytes, gallery, query={"id": id, "side": str(side)})


def rows(
    ids: Sequence[str] | None = None,
    *,
    where: Mapping[str, Any] | None = None,
    after: str | None = None,
    page: int = bodies.PAGE,
    gallery: str | None = None,
) -> Pages:
    """Iterate over rows in order of addition, or over those with some ids in the order of the ids.

    ids: of the rows, in one request.
    where: only rows whose metadata passes this filter.
    after: id of the row before the first.
    page: rows of one request, 1 to 1000; the next is sent when they are used up.
    """
    query: dict[str, str | list[str]] = {}
    if ids is not None:
        if where is not None or after is not None:
            raise errors.InputError("ids must not be given together with where or after")
        if not (listed := _list(ids)):
            raise errors.InputError("ids: must hold at least one id, got none")
        query["id"] = listed
    else:
        query["limit"] = str(page)
    if after is not None:
        query["after"] = after
    if where is not None:
        query["where"] = msgspec.json.encode(dict(where)).decode()
    return Pages("GET", _ROWS, lambda content: _decode(content, bodies.ListResponse), gallery, query=query)


def add(
    ids: Sequence[str],
    embeddings: Embeddings | None = None,
    metadata: Sequence[Mapping[str, Any]] | None = None,
    *,
    captions: Sequence[str] | None = None,
    pictures: Sequence[Picture] | None = None,
    overwrite: bool = False,
    gallery: str | None = None,
) -> Call[bodies.RowsResponse]:
    """Add rows, as `GalleryWriter.add`; give embeddings, captions or pictures."""
    body = bodies.PutRows(
        ids=list(ids),
        captions=_list(captions),
        pictures=_files(pictures),
        embeddings=None if embeddings is None else pack(embeddings),
        metadata=None if metadata is None else [dict(row) for row in metadata],
        overwrite=overwrite,
    )
    return Call("PUT", _ROWS, lambda content: _decode(content, bodies.RowsResponse), gallery, body)


def relabel(
    ids: Sequence[str], metadata: Sequence[Mapping[str, Any]], *, gallery: str | None = None
) -> Call[bodies.PatchResponse]:
    """Replace the metadata of rows, as `GalleryWriter.relabel`; their ids, vectors and order stay."""
    listed = _list(ids) or []
    if len(listed) != len(metadata):
        raise errors.InputError(f"ids, metadata: must be of one number, got {len(listed)}, {len(metadata)}")
    rows = [bodies.NewMetadata(id, dict(row)) for id, row in zip(listed, metadata, strict=True)]
    return Call("PATCH", _ROWS, lambda content: _decode(content, bodies.PatchResponse), gallery, bodies.PatchRows(rows))


def delete(ids: Sequence[str], *, gallery: str | None = None) -> Call[bodies.RowsResponse]:
    """Delete rows, as `GalleryWriter.delete`."""
    body = bodies.DeleteRows(list(ids))
    return Call("DELETE", _ROWS, lambda content: _decode(content, bodies.RowsResponse), gallery, body)


def _encode(body: bodies.EncodeRequest, gallery: str | None) -> Call[Embeddings]:
    return Call(
        "POST", "/v1/encode", lambda content: unpack(_decode(content, bodies.EncodeResponse).embeddings), gallery, body
    )


def _decode(content: bytes, kind: type[T]) -> T:
    return msgspec.json.decode(content, type=kind)


def _list(values: Sequence[str] | None) -> list[str] | None:
    if isinstance(values, Embeddings):
        raise errors.InputError("captions and ids must be lists of text, got Embeddings: give these as embeddings=")
    if isinstance(values, str):
        raise errors.InputError(f"captions and ids must be lists of text, got one text: write [{values[:40]!r}]")
    return None if values is None else list(values)


def _files(pictures: Sequence[Picture] | None) -> list[bytes] | None:
    if isinstance(pictures, str | Path | bytes):
        raise errors.InputError("pictures must be a list of files or bytes, got one of them: write [picture]")
    return None if pictures is None else [_file(one) for one in pictures]


def _file(picture: Picture) -> bytes:
    """The bytes of a picture file."""
    if isinstance(picture, bytes):
        return picture
    try:
        return Path(picture).read_bytes()
    except OSError as error:
        raise errors.InputError(f"{picture} cannot be read: {errors.reason_of(error)}") from error
