"""What the clients send and how they read it, without a connection: both of them are made from these calls."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..runtime import errors
from ..runtime.embeddings import Embeddings
from . import bodies
from .packing import pack, unpack

T = TypeVar("T")
Picture = str | Path | bytes
RETRIED = (429, 503)


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
    """One request.

    Attributes:
        method, path, query, body: of the request; the body is JSON.
        read: makes the result from the body of the answer.
    """

    method: str
    path: str
    read: Callable[[bytes], T]
    body: msgspec.Struct | None = None
    query: Mapping[str, str] = field(default_factory=dict)

    def content(self) -> bytes | None:
        """The body as JSON."""
        return None if self.body is None else msgspec.json.encode(self.body)


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


def headers(api_key: str | None) -> dict[str, str]:
    """Headers of every request."""
    kind = {"content-type": "application/json"}
    return kind if api_key is None else {**kind, "authorization": f"Bearer {api_key}"}


def result_of(call: Call[T], status: int, content: bytes) -> T:
    """The result of a call, or its error."""
    if status != 200:
        raise error_of(status, content)
    return call.read(content)


def no_server(url: str, error: Exception) -> RequestRefused:
    """The error where nothing answers."""
    return RequestRefused(f"no server answers at {url}: {error}", 0, "connection", "")


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
    captions: Sequence[str] | None,
    pictures: Sequence[Picture] | None,
    embeddings: Embeddings | None,
    k: int,
    where: Mapping[str, Any] | None,
    ids: Sequence[str] | None,
    off: Sequence[int],
    gallery: str | None,
) -> Call[list[bodies.Result]]:
    """`POST /v1/search`."""
    packed = None if embeddings is None else pack(embeddings)
    filter = None if where is None else dict(where)
    body = bodies.SearchRequest(gallery, _list(captions), _files(pictures), packed, k, filter, _list(ids), list(off))
    return Call("POST", "/v1/search", lambda content: _decode(content, bodies.SearchResponse).results, body)


def encode(captions: Sequence[str] | None, pictures: Sequence[Picture] | None, gallery: str | None) -> Call[Embeddings]:
    """`POST /v1/encode`."""
    body = bodies.EncodeRequest(gallery, _list(captions), _files(pictures))
    return Call("POST", "/v1/encode", lambda content: unpack(_decode(content, bodies.EncodeResponse).embeddings), body)


def score(
    captions: Sequence[str] | None,
    pictures: Sequence[Picture] | None,
    ids: Sequence[str] | None,
    gallery: str | None,
) -> Call[NDArray[np.float32]]:
    """`POST /v1/score`."""
    body = bodies.ScoreRequest(gallery, _list(captions), _files(pictures), _list(ids))

    def read(content: bytes) -> NDArray[np.float32]:
        return np.array(_decode(content, bodies.ScoreResponse).scores, np.float32)

    return Call("POST", "/v1/score", read, body)


def explain(
    caption: str | None, picture: Picture | None, id: str | None, gallery: str | None
) -> Call[bodies.ExplainResponse]:
    """`POST /v1/explain`."""
    body = bodies.ExplainRequest(gallery, caption, None if picture is None else _file(picture), id)
    return Call("POST", "/v1/explain", lambda content: _decode(content, bodies.ExplainResponse), body)


def galleries() -> Call[list[bodies.GalleryInfo]]:
    """`GET /v1/galleries`."""
    return Call("GET", "/v1/galleries", lambda content: _decode(content, bodies.GalleriesResponse).galleries)


def picture(id: str, side: int, gallery: str) -> Call[bytes]:
    """`GET /v1/galleries/NAME/pictures`."""
    return Call("GET", f"/v1/galleries/{gallery}/pictures", bytes, query={"id": id, "side": str(side)})


def add(
    gallery: str,
    ids: Sequence[str],
    captions: Sequence[str] | None,
    pictures: Sequence[Picture] | None,
    embeddings: Embeddings | None,
    metadata: Sequence[Mapping[str, Any]] | None,
    overwrite: bool,
) -> Call[bodies.RowsResponse]:
    """`PUT /v1/galleries/NAME/rows`."""
    packed = None if embeddings is None else pack(embeddings)
    details = None if metadata is None else [dict(row) for row in metadata]
    body = bodies.PutRows(list(ids), _list(captions), _files(pictures), packed, details, overwrite)
    return Call("PUT", f"/v1/galleries/{gallery}/rows", lambda content: _decode(content, bodies.RowsResponse), body)


def delete(gallery: str, ids: Sequence[str]) -> Call[bodies.RowsResponse]:
    """`DELETE /v1/galleries/NAME/rows`."""
    path, body = f"/v1/galleries/{gallery}/rows", bodies.DeleteRows(list(ids))
    return Call("DELETE", path, lambda content: _decode(content, bodies.RowsResponse), body)


def _decode(content: bytes, kind: type[T]) -> T:
    return msgspec.json.decode(content, type=kind)


def _list(values: Sequence[str] | None) -> list[str] | None:
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
