"""`/openapi.json`: the API in OpenAPI 3.1, made from the table of operations and the types of bodies.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from . import bodies
from .problems import MEDIA_TYPE

_COMPONENTS = "#/components/schemas/{name}"
_PROBLEMS = {
    "400": "The body is no JSON.",
    "401": "The API key is missing or wrong.",
    "403": "The server is read-only.",
    "404": "There is no such gallery, row or picture.",
    "408": "The body came too slowly.",
    "409": "Another process writes to the gallery.",
    "413": "The body or a picture is too large.",
    "415": "The body is of a kind that is not taken.",
    "421": "The request names another host than this one.",
    "422": "A field breaks a rule.",
    "429": "Too many requests are at work.",
    "500": "The server failed.",
    "501": "A library is missing, or shards on Ray do not do this.",
    "503": "The server loads or drains, or the request took too long.",
}


@dataclass(frozen=True)
class Operation:
    """One method of one path.

    Attributes:
        method, path: of the request.
        handler: answers it; the first line of its docstring is the summary.
        body: type of the request's JSON body, or None.
        answer: type of the answer's JSON body; None for a picture.
        picture: the field that a body `image/...` becomes; None where none is taken.
        query: parameters of the query, as OpenAPI has them.
        changes: whether it needs `--writable`.
    """

    method: str
    path: str
    handler: Callable[[Request], Awaitable[Response]]
    body: type[msgspec.Struct] | None = None
    answer: type[msgspec.Struct] | None = None
    picture: str | None = None
    query: Sequence[dict[str, Any]] = ()
    changes: bool = False


def document(operations: Sequence[Operation], version: str, keyed: bool) -> dict[str, Any]:
    """The OpenAPI document.

    Args:
        operations: of the API.
        version: of the package.
        keyed: whether requests need the API key.
    """
    types: list[type[msgspec.Struct]] = [bodies.Problem]
    types += [kind for one in operations for kind in (one.body, one.answer) if kind is not None]
    _, schemas = msgspec.json.schema_components(types, ref_template=_COMPONENTS)
    paths: dict[str, dict[str, Any]] = {}
    for one in operations:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one)
    result: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "chan serve", "version": version},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if keyed:
        result["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
        }
        result["security"] = [{"bearer": []}, {"api-key": []}]
    return result


def _operation(one: Operation) -> dict[str, Any]:
    summary = (one.handler.__doc__ or "").partition("\n")[0]
    parameters = list(one.query)
    parameters += [
        {"name": part[1:-1], "in": "path", "required": True, "schema": {"type": "string"}}
        for part in one.path.split("/")
        if part.startswith("{")
    ]
    content: dict[str, Any] = {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}
    if one.answer is not None:
        content = {"application/json": {"schema": _reference(one.answer)}}
    problem = {MEDIA_TYPE: {"schema": _reference(bodies.Problem)}}
    responses: dict[str, Any] = {"200": {"description": "Done.", "content": content}}
    responses |= {status: {"description": text, "content": problem} for status, text in _PROBLEMS.items()}
    result: dict[str, Any] = {
        "operationId": one.handler.__name__,
        "summary": summary,
        "parameters": parameters,
        "responses": responses,
    }
    accepted: dict[str, Any] = {}
    if one.body is not None:
        accepted["application/json"] = {"schema": _reference(one.body)}
    if one.picture is not None:
        accepted["image/*"] = {"schema": {"type": "string", "format": "binary"}}
    if accepted:
        result["requestBody"] = {"required": True, "content": accepted}
    return result


def _reference(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _COMPONENTS.format(name=kind.__name__)}
