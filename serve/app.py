"""The ASGI application of one worker."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp

from . import changes, routes
from .guard import ROUTE, Guard
from .openapi import Operation, document
from .problems import Refusal
from .state import State
from .static import page_routes


def create_app(state: State) -> ASGIApp:
    """The application that answers with what `state` holds.

    Args:
        state: of this worker; whoever makes it closes it.
    """
    operations = [*routes.operations(state), *changes.operations(state)]
    schema = json.dumps(document(operations, version("chan-rt"), state.settings.api_key is not None)).encode()

    async def openapi(request: Request) -> Response:
        return Response(schema, media_type="application/json")

    table: list[BaseRoute] = [
        *_health_routes(state),
        Route("/openapi.json", openapi),
        *_routes(operations),
        *page_routes(),
    ]
    app: ASGIApp = Guard(Router(table, redirect_slashes=False, default=_no_such_path), state)
    if state.settings.origins:
        app = CORSMiddleware(
            app,
            allow_origins=state.settings.origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["authorization", "api-key", "content-type", "x-request-id"],
            expose_headers=["x-request-id", "x-queue-time", "x-inference-time", "x-search-time", "retry-after"],
        )
    return app


def _routes(operations: Sequence[Operation]) -> list[Route]:
    """One route for each path, with all its methods."""
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    return [_route(path, methods) for path, methods in by_path.items()]


def _route(path: str, methods: Mapping[str, Operation]) -> Route:
    async def answer(request: Request) -> Response:
        request.scope[ROUTE] = path
        method = "GET" if request.method == "HEAD" else request.method
        return await methods[method].handler(request)

    return Route(path, answer, methods=list(methods))


def _health_routes(state: State) -> list[Route]:
    async def live(request: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def ready(request: Request) -> Response:
        status = "draining" if state.draining else "ready" if state.ready else "loading"
        return JSONResponse({"status": status}, 200 if status == "ready" else 503)

    async def metrics(request: Request) -> Response:
        text, media = await state.aside(state.metrics.exposition, state.galleries.all())
        return Response(text, headers={"content-type": media})

    return [Route("/livez", live), Route("/readyz", ready), Route("/metrics", metrics)]


async def _no_such_path(scope: object, receive: object, send: object) -> None:
    raise Refusal(404, "path", "no such path; /openapi.json lists them")
