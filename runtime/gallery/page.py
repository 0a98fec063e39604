"""Some rows of a gallery after another, with their ids and metadata: a page of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .store.rows import Row
from .store.segments import Segment
from .view import Place, View
from .where import Filter


@dataclass(frozen=True)
class RowPage:
    """Some rows of one commit, in order of addition.

    Attributes:
        rows: their ids and metadata.
        lengths: int32 [rows], vectors of each.
        total: rows of the gallery that pass the filter, those of other pages included.
        next: id of the last row, after which the next page begins; None where no row follows.
    """

    rows: list[Row]
    lengths: NDArray[np.int32]
    total: int
    next: str | None


def read_page(view: View, limit: int, after: str | None, condition: Filter | None) -> RowPage:
    """A page of a commit; metadata of other rows is read only where a filter is new.

    Args:
        view: the commit.
        limit: the most rows.
        after: id of the row before the page, which need not pass the filter; None begins with the first.
        condition: only rows that pass it.

    Raises:
        InputError: the gallery does not have `after`; the filter compares a key that no row has.
        GalleryCorrupt: bytes that must be read are not those that were committed.
    """
    first = (0, 0)
    if after is not None:
        ((shard, row),) = view.find([after], "after")
        first = shard, row + 1
    masks = view.allowed(None, condition)
    places = list(_places(masks, first, limit + 1))
    segments = list(view.segments_at(places[:limit]))
    rows = [segment.table.row(position) for segment, position in segments]
    total = sum(int(np.count_nonzero(mask)) for mask in masks)
    return RowPage(rows, lengths_of(segments), total, rows[-1].id if len(places) > limit else None)


def lengths_of(rows: Iterable[tuple[Segment, int]]) -> NDArray[np.int32]:
    """Numbers of vectors of rows, given by segment and position there: int32 [rows]."""
    return np.array([segment.starts[at + 1] - segment.starts[at] for segment, at in rows], np.int32)


def _places(masks: list[NDArray[np.bool_]], first: Place, count: int) -> Iterator[Place]:
    """At most so many rows of the masks, from a place on."""
    for shard, mask in enumerate(masks[first[0] :], first[0]):
        start = first[1] if shard == first[0] else 0
        chosen = np.flatnonzero(mask[start:])[:count]
        count -= len(chosen)
        for row in chosen.tolist():
            yield shard, start + row
