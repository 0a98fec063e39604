"""What each path of the API does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..runtime.embeddings import Embeddings
from . import answers, bodies
from .galleries import OpenGallery
from .pictures import etag
from .problems import Refusal
from .reading import read_request
from .state import State
from .uploads import decode_pictures
from .work import Search, Work

JSON = "application/json"


class Api:
    """The routes of one worker."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._limits = state.settings.limits

    def routes(self) -> list[Route]:
        """Every route of the API with its method."""
        table: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
            ("POST", "/v1/search", self.search),
            ("POST", "/v1/score", self.score),
            ("POST", "/v1/encode", self.encode),
            ("POST", "/v1/explain", self.explain),
            ("GET", "/v1/galleries", self.galleries),
            ("GET", "/v1/galleries/{name}/pictures", self.picture),
        ]
        return [Route(path, handler, methods=[method]) for method, path, handler in table]

    async def search(self, request: Request) -> Response:
        """Search a gallery with captions, pictures or embeddings."""
        body = await read_request(request, self._limits, bodies.SearchRequest, "pictures")
        if body.k > self._limits.k:
            raise Refusal(422, "k", f"k must be at most {self._limits.k}, got {body.k}")
        if body.off and len(body.captions or ()) != 1:
            raise Refusal(422, "off", f"off needs exactly one caption, got {len(body.captions or ())}")
        search = Search.of(body.k, body.mode, body.where, body.ids)
        with self._state.galleries.using(body.gallery) as opened:
            job = await self._job(opened, body.captions, body.pictures, body.embeddings, search, body.off)
            await self._do(job)
            return self._answer(answers.search_response(job), job)

    async def encode(self, request: Request) -> Response:
        """Encode captions or pictures."""
        body = await read_request(request, self._limits, bodies.EncodeRequest, "pictures")
        with self._state.galleries.using(body.gallery) as opened:
            job = await self._job(opened, body.captions, body.pictures)
            await self._do(job)
            assert job.embeddings is not None
            return self._answer(bodies.EncodeResponse(opened.name, answers.pack(job.embeddings)), job)

    async def score(self, request: Request) -> Response:
        """Score images with captions."""
        body = await read_request(request, self._limits, bodies.ScoreRequest)
        with self._state.galleries.using(body.gallery) as opened:
            sides = [await self._side(opened, body, side) for side in ("images", "captions")]
            found = [side if isinstance(side, Work) else None for side in sides]
            await asyncio.gather(*(self._do(job) for job in found if job is not None))
            images, captions = (_embeddings(side) for side in sides)
            scores = await self._state.aside(opened.matcher.score, images, captions)
            return self._answer(bodies.ScoreResponse(opened.name, scores.tolist()), *(job for job in found if job))

    async def explain(self, request: Request) -> Response:
        """Explain the score of a picture and a caption."""
        body = await read_request(request, self._limits, bodies.ExplainRequest, "picture")
        with self._state.galleries.using(body.gallery) as opened:
            row = None if body.id is None else await self._state.aside(opened.gallery.find, [body.id])
            caption, picture = body.caption, None
            if row is not None and opened.side == "captions":
                _only("caption", "id", body.caption, body.id)
                caption = str(row[0].metadata.get("caption", ""))
            if caption is None:
                raise Refusal(422, "body", "caption must be given, got none")
            if row is not None and opened.side == "images":
                _only("picture", "id", body.picture, body.id)
                picture = answers.picture_path(opened.name, row[0].id) if "path" in row[0].metadata else None
                image = await self._state.aside(opened.gallery.embeddings, [row[0].id])
            else:
                if body.picture is None:
                    raise Refusal(422, "body", "picture must be given, or the id of a row in its place, got neither")
                job = await self._job(opened, None, [body.picture])
                await self._do(job)
                assert job.embeddings is not None
                image = job.embeddings
            explanation = await self._state.aside(opened.matcher.explain, image, caption)
            return self._answer(answers.explain_response(opened, explanation, caption, picture))

    async def galleries(self, request: Request) -> Response:
        """List the galleries."""
        writable = self._state.settings.writable
        infos = [bodies_info(opened, writable) for opened in self._state.galleries.all().values()]
        return self._answer(bodies.GalleriesResponse(infos, asdict(self._limits)))

    async def picture(self, request: Request) -> Response:
        """The picture of a row, by the row's id."""
        id = request.query_params.get("id")
        side = request.query_params.get("side", "640")
        if id is None:
            raise Refusal(422, "query", "id must be given in the query, got none")
        if not side.isdecimal() or not 1 <= int(side[:9]) <= 1 << 20:
            raise Refusal(422, "query", f"side must be a number of pixels, got {side[:20]!r}")
        with self._state.galleries.using(request.path_params["name"]) as opened:
            data = await self._state.aside(self._state.pictures.read, opened, id, int(side))
        headers = {"ETag": etag(data), "Cache-Control": "private, max-age=60"}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers, media_type="image/jpeg")

    # -- pieces

    async def _job(
        self,
        opened: OpenGallery,
        captions: Sequence[str] | None = None,
        files: Sequence[bytes] | None = None,
        packed: bodies.PackedEmbeddings | None = None,
        search: Search | None = None,
        off: Sequence[int] = (),
    ) -> Work:
        """The job for one kind of queries; pictures are decoded here."""
        given = {"captions": captions, "pictures": files, "embeddings": packed}
        names = [name for name, value in given.items() if value is not None]
        if len(names) != 1:
            got = " and ".join(names) or "none"
            raise Refusal(422, "body", f"exactly one of captions, pictures and embeddings must be given, got {got}")
        rows = packed.lengths if packed is not None else captions if captions is not None else files
        assert rows is not None
        if not 1 <= len(rows) <= self._limits.texts:
            raise Refusal(422, "texts", f"{names[0]} must hold 1 to {self._limits.texts} items, got {len(rows)}")
        job = Work(opened=opened, search=search, off=off, words=1, deadline=self._state.deadline())
        if captions is not None:
            job.captions, job.words = captions, sum(2 + caption.count(" ") + 1 for caption in captions)
        elif files is not None:
            job.pictures = await self._state.aside(decode_pictures, opened, files, self._limits.pixels)
            job.words = len(files) * (opened.grid or 1) ** 2
        elif packed is not None:
            job.embeddings = answers.unpack(packed, 1 << 16)
            job.words = sum(packed.lengths)
        return job

    async def _side(self, opened: OpenGallery, body: bodies.ScoreRequest, side: str) -> Work | Embeddings:
        """One side of `score`: rows of the gallery, or a job that encodes."""
        if opened.side == side and body.ids is not None:
            if not 1 <= len(body.ids) <= self._limits.texts:
                raise Refusal(422, "texts", f"ids must hold 1 to {self._limits.texts} items, got {len(body.ids)}")
            _only("pictures" if side == "images" else "captions", "ids", _given(body, side), body.ids)
            return await self._state.aside(opened.gallery.embeddings, body.ids)
        if side == "images":
            return await self._job(opened, None, body.pictures)
        return await self._job(opened, body.captions)

    async def _do(self, job: Work) -> None:
        await self._state.in_time(asyncio.ensure_future(self._state.batcher.do(job)))

    def _answer(self, body: msgspec.Struct, *jobs: Work) -> Response:
        headers = {}
        if jobs:
            times = {
                "x-queue-time": max(job.queued for job in jobs),
                "x-inference-time": max(job.encode_seconds for job in jobs),
                "x-search-time": max(job.search_seconds for job in jobs),
            }
            headers = {name: f"{seconds * 1000:.2f}" for name, seconds in times.items()}
        return Response(msgspec.json.encode(body), headers=headers, media_type=JSON)


def _embeddings(side: Work | Embeddings) -> Embeddings:
    """Embeddings of one side of `score`."""
    found = side.embeddings if isinstance(side, Work) else side
    assert found is not None
    return found


def _given(body: bodies.ScoreRequest, side: str) -> object:
    return body.pictures if side == "images" else body.captions


def _only(name: str, other: str, value: object, stands: object) -> None:
    """Refusal where both a value and what stands in its place are given."""
    if value is not None and stands is not None:
        raise Refusal(422, "body", f"{name} must not be given together with {other}, which stands in its place")


def bodies_info(opened: OpenGallery, writable: bool) -> bodies.GalleryInfo:
    """What `GET /v1/galleries` answers about one gallery."""
    return msgspec.convert(opened.info(writable), bodies.GalleryInfo)
