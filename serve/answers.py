"""Results of the library as the bodies of answers: words beside their regions, boxes and shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np

from ..runtime.contract import AlignmentConfig
from ..runtime.embeddings import Embeddings
from ..runtime.explanation import MARKS, shares, word_shares
from ..runtime.gallery.result import Hit, SearchResult
from ..runtime.gallery.store.rows import Row
from ..runtime.regions import region_box
from . import bodies
from .galleries import OpenGallery, ServedGallery
from .packing import pack
from .work import Work

# Metadata that indexing keeps about this server's files: clients get the picture by its id. Of `boxes` they get those
# that words chose.
PRIVATE = ("path", "source")
HIDDEN = (*PRIVATE, "boxes")


def search_response(job: Work, gallery: ServedGallery) -> bodies.SearchResponse:
    """The answer to a search that is done."""
    assert job.embeddings is not None
    queries = [_caption_words(job.opened, caption, job.off) for caption in job.captions] or [[]] * len(job.results)
    results = [
        _result(job.opened, gallery, result, job.embeddings[row], words)
        for row, (result, words) in enumerate(zip(job.results, queries, strict=True))
    ]
    return bodies.SearchResponse(job.opened.name, job.opened.gallery.settings.kind, results)


def encode_response(job: Work, gallery: ServedGallery) -> bodies.EncodeResponse:
    """The answer to `encode`."""
    assert job.embeddings is not None
    return bodies.EncodeResponse(job.opened.name, pack(job.embeddings))


def explain_response(
    opened: OpenGallery, image: Embeddings, caption: str, picture: str | None
) -> bodies.ExplainResponse:
    """The answer to `explain`.

    Args:
        opened: the gallery.
        image: one row.
        caption: the caption.
        picture: path of the picture on this server, or None.
    """
    matcher = opened.need_matcher()
    explained = matcher.explain(image, caption)
    words = [
        bodies.WordMatch(
            match.word, match.region, explained.box(match), round(match.similarity, 6),
            round(match.share, 6), match.known, match.is_mark,
        )
        for match in explained.words
    ]  # fmt: skip
    unknown = matcher.unknown_words(caption)
    return bodies.ExplainResponse(opened.name, explained.score, explained.grid, picture, words, unknown)


def list_response(
    name: str, rows: Sequence[Row], lengths: Sequence[int], total: int, next: str | None
) -> bodies.ListResponse:
    """The answer to a listing of rows.

    Args:
        name: of the gallery.
        rows, lengths: some of its rows, and how many vectors each has.
        total: rows of all pages.
        next: id after which the next page begins, or None.
    """
    listed = [
        bodies.ListedRow(row.id, _shown(row.metadata), length, _row_picture(name, row))
        for row, length in zip(rows, lengths, strict=True)
    ]
    return bodies.ListResponse(name, listed, total, next)


def picture_path(name: str, hit_id: str) -> str:
    """Where this server has the picture of a row."""
    return f"/v1/galleries/{name}/pictures?id={quote(hit_id, safe='')}"


def _result(
    opened: OpenGallery,
    gallery: ServedGallery,
    result: SearchResult,
    query: Embeddings,
    words: Sequence[bodies.Word],
) -> bodies.Result:
    on = [word for word in words if word.on]
    hits = [_hit(opened, gallery, hit, query, on) for hit in result.hits]
    unknown = list(dict.fromkeys(word.word for word in words if not word.known))
    return bodies.Result(
        result.certified, result.reason, result.rows, result.rescored, result.rescored_share,
        list(words), unknown, hits,
    )  # fmt: skip


def _hit(
    opened: OpenGallery, gallery: ServedGallery, hit: Hit, query: Embeddings, words: Sequence[bodies.Word]
) -> bodies.Hit:
    if opened.side == "captions":
        words = _caption_words(opened, str(hit.metadata.get("caption", "")), (), len(hit.word_regions))
    elif not words:  # a query of embeddings, or a row: nobody knows its words
        words = [bodies.Word("")] * len(hit.word_regions)
    parts = _shares(gallery, hit, query)
    boxes = hit.metadata.get("boxes") if opened.side == "images" else query.boxes
    if isinstance(boxes, np.ndarray):
        boxes = boxes[0]
    grid = None if opened.side == query.kind == "captions" else opened.grid  # words chose words
    matches = [
        bodies.WordMatch(
            word.word, region, region_box(region, grid, boxes), round(similarity, 6), round(share, 6),
            word.known, word.mark,
        )
        for word, region, similarity, share in zip(
            words, hit.word_regions.tolist(), hit.word_scores.tolist(), parts, strict=True
        )
    ]  # fmt: skip
    return bodies.Hit(hit.id, hit.score, _shown(hit.metadata), _row_picture(opened.name, hit), matches)


def _shown(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a row that clients get."""
    return {key: value for key, value in metadata.items() if key not in HIDDEN}


def _row_picture(name: str, row: Row | Hit) -> str | None:
    """Where this server has the picture of a row, if the row has one."""
    return picture_path(name, row.id) if "path" in row.metadata else None


def _shares(gallery: ServedGallery, hit: Hit, query: Embeddings) -> list[float]:
    """Each word's share of a hit's score. With VHA the similarities decide; otherwise the row's vectors are read."""
    config: AlignmentConfig = gallery.alignment
    of_words = word_shares(hit.word_scores, config)
    if of_words is not None:
        return list(map(float, of_words))
    row = gallery.embeddings([hit.id])
    mine, asked = row.vectors[0, : row.lengths[0]], query.vectors[0, : query.lengths[0]]
    regions, words = (mine, asked) if gallery.settings.kind == "images" else (asked, mine)
    return list(map(float, shares(regions, words, hit.word_scores.tolist(), config)))


def _caption_words(
    opened: OpenGallery, caption: str, off: Sequence[int], count: int | None = None
) -> list[bodies.Word]:
    """The words of a caption; `count` nameless ones where the caption or the words of a row are not known."""
    if count is not None and (opened.matcher is None or not caption.strip()):
        return [bodies.Word("")] * count
    tokenizer = opened.need_matcher().tokenizer
    pairs = zip(tokenizer.tokens(caption), tokenizer.known(caption), strict=True)
    return [bodies.Word(word, known, word in MARKS, i not in off) for i, (word, known) in enumerate(pairs)]
