"""Queries as a search takes them, and what becomes of a ranking: hits with ids, metadata and words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..contract import AlignmentConfig
from ..counts import counted
from ..embeddings import Embeddings, check_embeddings
from ..errors import InputError
from ..tensor_checks import check_unmasked
from .proof.certify import Ranking
from .proof.rows import pack_rows
from .proof.true_score import TrueRow, TrueRows, true_row
from .result import Hit, SearchResult
from .settings import GallerySettings
from .snapshot import Snapshot
from .store.rows import Row


def check_queries(
    settings: GallerySettings,
    queries: Embeddings,
    same_kind: bool,
    at_least: float | Sequence[float] | None,
) -> tuple[list[NDArray[np.float32]], NDArray[np.float64]]:
    """The vectors of each query, and the least score that is wanted for each: float64 [queries].

    Args:
        settings: of the gallery that is searched.
        queries, same_kind, at_least: as in `Gallery.search`.

    Raises:
        InputError, TensorError: as in `Gallery.search`.
    """
    check_embeddings("queries", queries)
    if queries.dim != settings.dim:
        raise InputError(f"queries: D must be this gallery's {settings.dim}, got {queries.dim}")
    if queries.kind == settings.kind and not same_kind:
        other = "captions" if queries.kind == "images" else "images"
        rule = f"a gallery of {settings.kind} is searched with {other} unless same_kind is set"
        raise InputError(f"queries: {rule}, got {queries.kind}")
    vectors, starts = pack_rows(queries.vectors, queries.lengths, "queries")
    return np.split(vectors, starts[1:-1]), _least(at_least, len(queries))


def _least(at_least: float | Sequence[float] | None, queries: int) -> NDArray[np.float64]:
    """The least score that is wanted for each query: float64 [queries]."""
    if at_least is None:
        return np.full(queries, -np.inf)
    check_unmasked("at_least", at_least)
    try:
        least = np.asarray(at_least, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"at_least: must be numbers, got {at_least!r}") from error
    if least.shape not in ((), (queries,)):
        raise InputError(
            f"at_least: must be one number or one for each of {counted(queries, 'query')}, got {list(least.shape)}"
        )
    if np.isnan(least).any():
        raise InputError("at_least: must be numbers, got NaN")
    return np.full(queries, least) if least.ndim == 0 else least.copy()


def answer(
    snapshot: Snapshot,
    settings: GallerySettings,
    queries: Sequence[NDArray[np.float32]],
    k: int,
    allowed: NDArray[np.bool_],
    floors: NDArray[np.float64],
    reason: str,
) -> list[SearchResult]:
    """One folder's answer to each query.

    Args:
        snapshot: its commit.
        settings: of the gallery.
        queries: float32 [vectors, D] each.
        k: length of the rankings.
        allowed: bool [rows], which rows take part.
        floors: float64 [queries]; rows that score less are not wanted.
        reason: why results are certified, or why not.
    """
    rankings = snapshot.ranker.exact(queries, k, allowed, floors)
    rows, found = int(np.count_nonzero(allowed)), _FoundRows(snapshot)
    return [
        SearchResult(
            _hits(snapshot, found, settings, query, ranking),
            ranking.certified,
            reason,
            rows,
            ranking.rescored,
            ranking.second,
            ranking.codes,
        )
        for query, ranking in zip(queries, rankings, strict=True)
    ]


class _FoundRows:
    """Ids and metadata of the rows of one answer: each is read once, however many queries find it."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._known: dict[int, Row] = {}

    def row(self, row: int) -> Row:
        """One row; no two of them share their metadata."""
        known = self._known.get(row)
        if known is None:
            found = self._known[row] = self._snapshot.row(row)
            return found
        return Row(known.id, _copied(known.metadata))


def _copied(value: Any) -> Any:
    """A copy of what JSON held; `deepcopy` takes three times as long."""
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value


def _hits(
    snapshot: Snapshot,
    found: _FoundRows,
    settings: GallerySettings,
    query: NDArray[np.float32],
    ranking: Ranking,
) -> tuple[Hit, ...]:
    """A ranking with ids, metadata and words."""
    hits = []
    for row, score, (regions, similarities) in zip(
        ranking.rows.tolist(), ranking.scores.tolist(), _words(snapshot, settings, query, ranking), strict=True
    ):
        own = found.row(row)
        hits.append(Hit(own.id, score, own.metadata, regions, similarities))
    return tuple(hits)


def _words(
    snapshot: Snapshot, settings: GallerySettings, query: NDArray[np.float32], ranking: Ranking
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """Each word's region and similarity, for each row of a ranking."""
    details: Iterable[TrueRow]
    if settings.alignment.coding == "VHA" and isinstance(ranking.details, TrueRows):  # converts all of them at once
        return zip(ranking.details.winners, ranking.details.maxima.astype(np.float32), strict=True)
    if settings.alignment.coding == "VHA" and ranking.details is not None:
        details = ranking.details
    else:
        hard = AlignmentConfig("VHA", "Max")
        places = map(snapshot.locate, ranking.rows.tolist())
        vectors = (snapshot.segments[index].vectors(position, position + 1) for index, position in places)
        details = (true_row(own, query, settings.kind, hard) for own in vectors)
    return ((detail.winners, detail.maxima.astype(np.float32)) for detail in details)
