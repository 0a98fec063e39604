"""The page: its files are read from the package when the server starts, and no other file is ever served this way."""

from __future__ import annotations

import hashlib
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..runtime.pictures.document import SCRIPT, STYLES, asset

# Suffix -> media type of the files that the page may have.
_MEDIA = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page_routes() -> list[Route]:
    """`/` for the page's index.html, and `/page/NAME` for each of its other files and those that all pages share."""
    files = {file.name: file.read_bytes() for file in resources.files(__package__).joinpath("page").iterdir()}
    files |= {name: asset(name).encode() for name in (*STYLES, SCRIPT)}
    routes = []
    for name, content in files.items():
        suffix = "." + name.rpartition(".")[2]
        if suffix in _MEDIA:
            routes.append(_route("/" if name == "index.html" else f"/page/{name}", content, _MEDIA[suffix]))
    return routes


def _route(path: str, content: bytes, media: str) -> Route:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache", "Content-Security-Policy": CONTENT_POLICY}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media)

    return Route(path, answer, methods=["GET"])
