"""Some rows of a gallery after another, with their ids and metadata: a page of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .store.rows import Row
from .store.segments import Segment
from .values import check_known
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
    first = (0, 0) if after is None else _behind(view, after)
    masks = view.allowed(None, condition)
    places = list(_places(masks, first, limit + 1))
    segments = [_segment(view, place) for place in places[:limit]]
    rows = [segment.table.row(position) for segment, position in segments]
    lengths = np.array([segment.starts[at + 1] - segment.starts[at] for segment, at in segments], np.int32)
    total = sum(int(np.count_nonzero(mask)) for mask in masks)
    return RowPage(rows, lengths, total, rows[-1].id if len(places) > limit else None)


def _behind(view: View, id: str) -> Place:
    """The place behind a row."""
    found = {shard: row for shard, snapshot in enumerate(view.opened) for row in snapshot.find([id]).values()}
    check_known([id], [id] if found else [], "after")
    ((shard, row),) = found.items()
    return shard, row + 1


def _places(masks: list[NDArray[np.bool_]], first: Place, count: int) -> Iterator[Place]:
    """At most so many rows of the masks, from a place on."""
    for shard, mask in enumerate(masks[first[0] :], first[0]):
        start = first[1] if shard == first[0] else 0
        chosen = np.flatnonzero(mask[start:])[:count]
        count -= len(chosen)
        for row in chosen.tolist():
            yield shard, start + row


def _segment(view: View, place: Place) -> tuple[Segment, int]:
    """The segment of a row, and its position there."""
    snapshot = view.opened[place[0]]
    index, position = snapshot.locate(place[1])
    return snapshot.segments[index], position
