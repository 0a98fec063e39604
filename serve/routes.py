"""What each path of the API does that changes nothing."""

from __future__ import annotations

from dataclasses import asdict

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..runtime.embeddings import Embeddings, Kind
from ..runtime.gallery import Gallery
from ..runtime.gallery.store.rows import Row
from ..runtime.gallery.where import Filter
from ..runtime.regions import with_boxes
from . import answers, bodies
from .galleries import OpenGallery, ServedGallery
from .jobs import check_characters, check_count, do, make_filter, make_job
from .openapi import Operation
from .pictures import SIDES, etag
from .problems import Refusal
from .reading import read_query, read_request
from .state import State
from .work import Search, Work

_PICTURE_QUERY = (
    {"name": "id", "in": "query", "required": True, "schema": {"type": "string"}},
    {"name": "side", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": SIDES[-1]}},
)

_ROWS_QUERY = (
    {
        "name": "limit", "in": "query",
        "schema": {"type": "integer", "minimum": 1, "maximum": bodies.MAX_PAGE, "default": bodies.PAGE},
    },
    {"name": "after", "in": "query", "schema": {"type": "string"}},
    {"name": "where", "in": "query", "content": {"application/json": {"schema": {"type": "object"}}}},
    {"name": "id", "in": "query", "schema": {"type": "array", "items": {"type": "string"}}},
)  # fmt: skip


def operations(state: State) -> list[Operation]:
    """The operations that change nothing."""
    api = _Api(state)
    return [
        Operation("POST", "/v1/search", api.search, bodies.SearchRequest, bodies.SearchResponse, "pictures"),
        Operation("POST", "/v1/score", api.score, bodies.ScoreRequest, bodies.ScoreResponse),
        Operation("POST", "/v1/encode", api.encode, bodies.EncodeRequest, bodies.EncodeResponse, "pictures"),
        Operation("POST", "/v1/explain", api.explain, bodies.ExplainRequest, bodies.ExplainResponse, "picture"),
        Operation("GET", "/v1/galleries", api.galleries, None, bodies.GalleriesResponse),
        Operation("GET", "/v1/galleries/{name}/pictures", api.picture, query=_PICTURE_QUERY),
        Operation("GET", "/v1/galleries/{name}/rows", api.rows, None, bodies.ListResponse, query=_ROWS_QUERY),
    ]


class _Api:
    def __init__(self, state: State) -> None:
        self._state = state
        self._limits = state.settings.limits

    async def search(self, request: Request) -> Response:
        """Search a gallery with captions, pictures, embeddings, or one of its rows."""
        body = await read_request(request, self._limits, bodies.SearchRequest, "pictures")
        rows = body.captions or body.pictures or (body.embeddings.lengths if body.embeddings else [body.like])
        if body.k * len(rows) > self._limits.k:
            asked = f"{body.k} for each of {len(rows)}" if len(rows) > 1 else body.k
            raise Refusal(422, "k", f"k must be at most {self._limits.k} for all queries together, got {asked}")
        if body.off and len(body.captions or ()) != 1:
            raise Refusal(422, "off", f"off needs exactly one caption, got {len(body.captions or ())}")
        ids = None if body.ids is None else tuple(body.ids)
        search = Search(body.k, make_filter(self._state, body.where), ids, body.like)
        with self._state.galleries.using(body.gallery) as opened:
            _check_side(opened, body)
            job = await make_job(self._state, opened, body.captions, body.pictures, body.embeddings, search, body.off)
            job.describe = answers.search_response
            await do(self._state, job)
            return answer(job.answer, job)

    async def encode(self, request: Request) -> Response:
        """Encode captions or pictures."""
        body = await read_request(request, self._limits, bodies.EncodeRequest, "pictures")
        with self._state.galleries.using(body.gallery) as opened:
            job = await make_job(self._state, opened, body.captions, body.pictures)
            job.describe = answers.encode_response
            await do(self._state, job)
            return answer(job.answer, job)

    async def score(self, request: Request) -> Response:
        """Score images with captions."""
        body = await read_request(request, self._limits, bodies.ScoreRequest)
        with self._state.galleries.using(body.gallery) as opened:
            images, images_jobs = await self._side(opened, body, "images")
            captions, captions_jobs = await self._side(opened, body, "captions")
            scores = await self._state.aside(opened.need_matcher().score, images, captions)
            done = bodies.ScoreResponse(opened.name, scores.tolist())
            return answer(msgspec.json.encode(done), *images_jobs, *captions_jobs)

    async def explain(self, request: Request) -> Response:
        """Explain the score of a picture and a caption."""
        body = await read_request(request, self._limits, bodies.ExplainRequest, "picture")
        with self._state.galleries.using(body.gallery) as opened:
            caption, path = body.caption, None
            image: Embeddings | None = None
            jobs: list[Work] = []
            if body.id is not None:
                row, image = await self._state.aside(_row_of, opened, body.id)
                if image is not None:
                    _only("picture", "id", body.picture)
                    path = answers.picture_path(opened.name, row.id) if "path" in row.metadata else None
                else:
                    _only("caption", "id", body.caption)
                    caption = str(row.metadata.get("caption", ""))
            if caption is None:
                raise Refusal(422, "body", "caption must be given, got none")
            if image is None:
                if body.picture is None:
                    raise Refusal(422, "body", "picture must be given, got none")
                jobs.append(await make_job(self._state, opened, pictures=[body.picture]))
                image = await do(self._state, jobs[0])
            check_characters(self._state, "caption", caption)
            explained = await self._state.aside(answers.explain_response, opened, image, caption, path)
            return answer(msgspec.json.encode(explained), *jobs)

    async def galleries(self, request: Request) -> Response:
        """List the galleries."""
        return await self._state.aside(galleries_answer, self._state)

    async def picture(self, request: Request) -> Response:
        """The picture of a row, by the row's id."""
        id, side = request.query_params.get("id"), request.query_params.get("side", "640")
        if id is None:
            raise Refusal(422, "query", "id must be given in the query, got none")
        if not (side.isascii() and side.isdecimal() and 1 <= int(side[:9]) <= SIDES[-1]):
            raise Refusal(422, "query", f"side must be 1 to {SIDES[-1]} pixels, got {side[:20]!r}")
        with self._state.galleries.using(request.path_params["name"]) as opened:
            data = await self._state.aside(self._state.pictures.read, opened, id, int(side))
        headers = {"ETag": etag(data), "Cache-Control": "private, max-age=60"}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers, media_type="image/jpeg")

    async def rows(self, request: Request) -> Response:
        """List rows of a gallery in order of addition, or some by their ids."""
        query = read_query(request, bodies.ListRows)
        if query.id is not None:
            check_count(self._state, "id", query.id)
            beside = [name for name in ("limit", "after", "where") if name in request.query_params]
            if beside:
                detail = f"id must not be given together with {beside[0]}: give ids, or what makes a page"
                raise Refusal(422, "query", detail)
        condition = make_filter(self._state, query.where)
        with self._state.galleries.using(request.path_params["name"]) as opened:
            return answer(await self._state.aside(_listed, opened, query, condition))

    async def _side(self, opened: OpenGallery, body: bodies.ScoreRequest, side: Kind) -> tuple[Embeddings, list[Work]]:
        """One side of `score`: rows of the gallery, or what a job encodes."""
        name, given = ("pictures", body.pictures) if side == "images" else ("captions", body.captions)
        if body.ids is not None and opened.side == side:
            _only(name, "ids", given)
            check_count(self._state, "ids", body.ids)
            return await self._state.aside(opened.gallery.embeddings, body.ids), []
        if given is None:
            raise Refusal(422, "body", f"{name} must be given, got none")
        job = await make_job(
            self._state,
            opened,
            body.captions if side == "captions" else None,
            body.pictures if side == "images" else None,
        )
        return await do(self._state, job), [job]


def _row_of(opened: OpenGallery, id: str) -> tuple[Row, Embeddings | None]:
    """A row, and its embeddings with their boxes where it is an image."""

    def read(gallery: ServedGallery) -> tuple[Row, Embeddings | None]:
        (row,) = gallery.find([id])
        if opened.side == "captions":
            return row, None
        return row, with_boxes(gallery.embeddings([id]), row.metadata)

    return opened.gallery.at_one_commit(read)


def _listed(opened: OpenGallery, query: bodies.ListRows, condition: Filter | None) -> bytes:
    """The answer to a listing of rows, all of it from one commit.

    Raises:
        Refusal: the gallery's shards are searched on Ray, whose processes list nothing.
        InputError, GalleryError: as `Gallery.page` and `Gallery.find`.
    """
    if not isinstance(opened.gallery, Gallery):
        detail = "rows are not listed where shards are searched on Ray (--ray): chan gallery export writes them"
        raise Refusal(501, "ray", detail)
    ids = query.id
    if ids is None:
        page = opened.gallery.page(query.limit, query.after, condition)
        rows, lengths, total, following = page.rows, page.lengths, page.total, page.next
    else:
        rows, lengths = opened.gallery.at_one_commit(lambda gallery: (gallery.find(ids), gallery.lengths(ids)))
        total, following = len(rows), None
    return msgspec.json.encode(answers.list_response(opened.name, rows, lengths.tolist(), total, following))


def galleries_answer(state: State) -> Response:
    """The answer to `GET /v1/galleries`."""
    writable = state.settings.writable
    infos = [opened.info(writable) for opened in state.galleries.all().values()]
    return answer(msgspec.json.encode(bodies.GalleriesResponse(infos, asdict(state.settings.limits))))


def answer(body: bytes, *jobs: Work) -> Response:
    """An answer in JSON, with the times of the jobs it needed."""
    headers = {}
    if jobs:
        times = {
            "x-queue-time": max(job.queued for job in jobs),
            "x-inference-time": max(job.encode_seconds for job in jobs),
            "x-search-time": max(job.search_seconds for job in jobs),
        }
        headers = {name: f"{seconds * 1000:.2f}" for name, seconds in times.items()}
    return Response(body, headers=headers, media_type="application/json")


def _check_side(opened: OpenGallery, body: bodies.SearchRequest) -> None:
    """Refusal of queries of the side that the gallery holds, before they are encoded."""
    if opened.matcher is None:
        return  # nothing encodes anything for it, which is a better reason
    wanted = "captions" if opened.side == "images" else "pictures"
    got = "captions" if body.captions is not None else "pictures" if body.pictures is not None else wanted
    if got != wanted:
        detail = f"the gallery {opened.name} of {opened.side} is searched with {wanted} or embeddings, got {got}"
        raise Refusal(422, "body", detail)


def _only(name: str, other: str, value: object) -> None:
    """Refusal where a value is given beside the ids that stand in its place."""
    if value is not None:
        raise Refusal(422, "body", f"{name} must not be given together with {other}, which stands in its place")
