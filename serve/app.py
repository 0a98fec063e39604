"""The ASGI application of one worker."""

from __future__ import annotations

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp

from .guard import Guard
from .problems import Refusal
from .routes import Api
from .state import State
from .static import page_routes


def create_app(state: State) -> ASGIApp:
    """The application that answers with what `state` holds.

    Args:
        state: of this worker; whoever makes it closes it.
    """
    routes: list[BaseRoute] = [*_health_routes(state), *Api(state).routes(), *page_routes()]
    app: ASGIApp = Guard(Router(routes, redirect_slashes=False, default=_no_such_path), state)
    if state.settings.origins:
        app = CORSMiddleware(
            app,
            allow_origins=state.settings.origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["authorization", "api-key", "content-type", "x-request-id"],
            expose_headers=["x-request-id", "x-queue-time", "x-inference-time", "x-search-time", "retry-after"],
        )
    return app


def _health_routes(state: State) -> list[Route]:
    async def live(request: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def ready(request: Request) -> Response:
        status = "draining" if state.draining else "ready" if state.ready else "loading"
        return JSONResponse({"status": status}, 200 if status == "ready" else 503)

    return [Route("/livez", live), Route("/readyz", ready)]


async def _no_such_path(scope: object, receive: object, send: object) -> None:
    raise Refusal(404, "path", "no such path; /openapi.json lists them")
