"""Requests to typed bodies: JSON, or a picture file with the other fields in the query; bounded in bytes and time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from starlette.datastructures import Headers
from starlette.requests import Request

from ..runtime.strict_json import unique_keys
from .problems import Refusal
from .settings import Limits

T = TypeVar("T", bound=msgspec.Struct)
READING = "chan_rt.reading"  # key of an ASGI scope: whether the body is still on its way
_BLANKS = (b" ", b"\t", b"\n", b"\r")
CLOSE = {"Connection": "close"}  # where a body is not read to its end, the connection cannot be used again


def body_size(headers: Headers, limits: Limits) -> int:
    """Bytes that the body of a request may have: as announced, or as many as are taken of one without a length.

    Raises:
        Refusal: 413 for more than a request may have.
    """
    announced = headers.get("content-length")
    if announced is None:
        return limits.payload if "transfer-encoding" in headers else 0
    size = int(announced) if announced.isdecimal() and len(announced) < 19 else limits.payload + 1
    if size > limits.payload:
        raise _too_large(limits)
    return size


async def read_body(request: Request, limits: Limits) -> bytes:
    """The whole body of a request.

    Raises:
        Refusal: 413 for more bytes than a request may have.
    """
    request.scope[READING] = True
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limits.payload:
            raise _too_large(limits)
        parts.append(part)
    request.scope[READING] = False
    return b"".join(parts)


def _too_large(limits: Limits) -> Refusal:
    return Refusal(413, "payload", f"the body must have at most {limits.payload} bytes, got more", CLOSE)


async def read_request(request: Request, limits: Limits, kind: type[T], picture: str | None = None) -> T:
    """The body of a request as a type of bodies.py.

    Args:
        request: its body is JSON, or a picture file with a media type `image/...`.
        limits: of the server.
        kind: the type.
        picture: the field that a picture file becomes (`picture`, or `pictures`, of which it is the only one); None
            where none is taken. The other fields come from the query then.

    Raises:
        Refusal: as `read_body`; 415 for another media type or a compressed body, 400 for what is no JSON, 422 for
            fields that do not fit, or that stand in the query beside JSON.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise Refusal(415, "media", f"the body must not be encoded, got the content encoding {coding[:60]!r}")
    body = await read_body(request, limits)
    if picture is not None and media.startswith("image/"):
        fields = _query_fields(request, kind)
        fields[picture] = body if picture == "picture" else [body]
        return _convert(fields, kind)
    if media != "application/json":
        also = " or image/..." if picture is not None else ""
        raise Refusal(415, "media", f"the content type must be application/json{also}, got {media or 'none'}")
    if request.query_params:
        names = ", ".join(dict.fromkeys(request.query_params))
        raise Refusal(422, "query", f"beside a body in JSON the query must be empty, got {names[:60]!r} in it")
    try:
        found = msgspec.json.decode(body, type=kind)
        check_keys(body)
        return found
    except (msgspec.ValidationError, RepeatedKey) as error:
        raise Refusal(422, "body", f"the body does not fit: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(400, "json", f"the body must be JSON: {error}") from error
    except RecursionError as error:
        raise Refusal(400, "json", "the body must be JSON that is not nested so deep") from error


def read_query(request: Request, kind: type[T]) -> T:
    """The query of a request without a body as a type of bodies.py.

    Raises:
        Refusal: 422 for fields that do not fit.
    """
    return _convert(_query_fields(request, kind), kind)


class RepeatedKey(ValueError):
    """A key stands twice in one object, of which only the last value would be read."""


def check_keys(body: bytes) -> None:
    """Raise RepeatedKey for JSON with an object that has a key twice, which msgspec reads without a word.

    Only where two keys of the whole body are alike is it parsed once more. For a search by a caption that takes 14 us,
    for 249 KB of vectors 6 us, and for a picture of 2 MB 83 us (one busy core of an EPYC).

    Args:
        body: JSON that was read once.
    """
    if not _may_repeat(body):
        return
    try:
        json.loads(body, object_pairs_hook=unique_keys, parse_int=float, parse_float=float)
    except ValueError as error:
        raise RepeatedKey(str(error)) from error


def _may_repeat(body: bytes) -> bool:
    """Whether two keys of JSON are alike, or one is written with escapes."""
    keys: set[bytes] = set()
    start = body.find(b'"')
    while start >= 0:
        end = body.find(b'"', start + 1)
        while _is_escaped(body, end):
            end = body.find(b'"', end + 1)
        behind = end + 1
        while body[behind : behind + 1] in _BLANKS:
            behind += 1
        if body[behind : behind + 1] == b":":
            key = body[start + 1 : end]
            if key in keys or b"\\" in key:
                return True
            keys.add(key)
        start = body.find(b'"', end + 1)
    return False


def _is_escaped(body: bytes, place: int) -> bool:
    """Whether an odd number of backslashes stands before a place."""
    before = place
    while body[before - 1 : before] == b"\\":
        before -= 1
    return (place - before) % 2 == 1


def _query_fields(request: Request, kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The fields that a query gives: lists by repeating the name, objects as JSON."""
    lists = {one.encode_name for one in msgspec.structs.fields(kind) if "list[" in str(one.type)}
    objects = {one.encode_name for one in msgspec.structs.fields(kind) if "dict[" in str(one.type)}
    found: dict[str, Any] = {}
    for name in request.query_params:
        values = request.query_params.getlist(name)
        if name not in lists and len(values) > 1:
            raise Refusal(422, "query", f"the query must have {name} once, got it {len(values)} times")
        try:
            parsed = [msgspec.json.decode(value) for value in values] if name in objects else values
            for value in values if name in objects else ():
                check_keys(value.encode())
        except RepeatedKey as error:
            raise Refusal(422, "query", f"{name} does not fit: {error}") from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise Refusal(422, "query", f"{name} must be JSON, got {values[0][:60]!r}") from error
        found[name] = parsed if name in lists else parsed[0]
    return found


def _convert(fields: Mapping[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(fields, kind, strict=False)
    except msgspec.ValidationError as error:
        raise Refusal(422, "query", f"the query does not fit: {error}") from error
