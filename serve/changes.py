"""What the paths of the API do that change a gallery. They need `--writable`."""

from __future__ import annotations

import os
import signal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from . import bodies
from .jobs import check_count, do, make_job
from .openapi import Operation
from .problems import Refusal
from .reading import read_request
from .routes import answer, galleries_answer
from .rows import Writers
from .state import State

_ROWS = "/v1/galleries/{name}/rows"
_ID_QUERY = ({"name": "id", "in": "query", "schema": {"type": "string"}},)


def operations(state: State) -> list[Operation]:
    """The operations that change something."""
    api, rows, picture = _Changes(state), bodies.PutRows, bodies.PutPicture
    done = bodies.RowsResponse
    return [
        Operation("PUT", _ROWS, api.put_rows, rows, done, changes=True),
        Operation("PATCH", _ROWS, api.patch_rows, bodies.PatchRows, bodies.PatchResponse, changes=True),
        Operation("DELETE", _ROWS, api.delete_rows, bodies.DeleteRows, done, changes=True),
        Operation(
            "PUT", "/v1/galleries/{name}/pictures", api.put_picture, picture, done, "picture", _ID_QUERY, changes=True
        ),
        Operation("POST", "/v1/reopen", api.reopen, None, bodies.GalleriesResponse, changes=True),
    ]


class _Changes:
    def __init__(self, state: State) -> None:
        self._state = state
        settings, limits = state.settings, state.settings.limits
        self._writers = Writers(settings.uploads, limits.row, limits.seconds if settings.workers > 1 else 0)

    async def put_rows(self, request: Request) -> Response:
        """Add rows to a gallery, or replace them."""
        self._check_writable()
        body = await read_request(request, self._state.settings.limits, bodies.PutRows)
        return await self._put(request.path_params["name"], body)

    async def put_picture(self, request: Request) -> Response:
        """Add one row from a picture, or replace it."""
        self._check_writable()
        one = await read_request(request, self._state.settings.limits, bodies.PutPicture, "picture")
        metadata = None if one.metadata is None else [one.metadata]
        body = bodies.PutRows([one.id], pictures=[one.picture], metadata=metadata, overwrite=one.overwrite)
        return await self._put(request.path_params["name"], body)

    async def patch_rows(self, request: Request) -> Response:
        """Replace the metadata of rows."""
        self._check_writable()
        body = await read_request(request, self._state.settings.limits, bodies.PatchRows)
        check_count(self._state, "rows", body.rows)
        with self._state.galleries.using(request.path_params["name"]) as opened:
            done = await self._state.change(self._writers.patch, opened, body.rows)
        return answer(msgspec.json.encode(done))

    async def delete_rows(self, request: Request) -> Response:
        """Delete rows of a gallery."""
        self._check_writable()
        body = await read_request(request, self._state.settings.limits, bodies.DeleteRows)
        check_count(self._state, "ids", body.ids)
        with self._state.galleries.using(request.path_params["name"]) as opened:
            done = await self._state.change(self._writers.delete, opened, body.ids)
        return answer(msgspec.json.encode(done))

    async def reopen(self, request: Request) -> Response:
        """Open the galleries and their bundles again."""
        self._check_writable()
        await self._state.aside(self._state.galleries.reopen)
        if self._state.settings.workers > 1:
            os.kill(os.getppid(), signal.SIGHUP)  # the supervisor tells the other workers
        return await self._state.aside(galleries_answer, self._state)

    async def _put(self, name: str, body: bodies.PutRows) -> Response:
        check_count(self._state, "ids", body.ids)
        with self._state.galleries.using(name) as opened:
            job = await make_job(self._state, opened, body.captions, body.pictures, body.embeddings)
            encoded = await do(self._state, job)
            done = await self._state.change(self._writers.add, opened, body, encoded)
        return answer(msgspec.json.encode(done), job)

    def _check_writable(self) -> None:
        if not self._state.settings.writable:
            raise Refusal(403, "read-only", "the server is read-only; it takes changes when started with --writable")
