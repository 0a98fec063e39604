"""One commit of a gallery, open for search: it stays as it is whatever is committed meanwhile."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import GalleryCorrupt
from .prepare import Preparation, load_preparation
from .proof.prefix import SearchPlan
from .rank import Ranker
from .settings import GallerySettings
from .store.catalogue import Catalogue, SegmentRecord
from .store.files import SEGMENTS, MappedFile
from .store.header import Header
from .store.mapping import check_folder, describe
from .store.newest import newest_header, read_newest
from .store.rows import HeldRows, Row, RowTable, hash_ids
from .store.segments import Segment
from .watch import Watch
from .where import Filter

Damaged = Literal["refuse", "skip"]
Rank = Callable[[Sequence[Segment], SearchPlan | None], Ranker]
_MASKS = 16  # masks of filters kept for a segment: one byte a row each


@dataclass(frozen=True)
class OpenSegment:
    """A segment as far as it can be read.

    Attributes:
        segment: None where nothing of it can be read.
        lost: [rows], which cannot be read.
        damage: what is damaged, in words.
    """

    segment: Segment | None
    lost: NDArray[np.bool_]
    damage: tuple[str, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """One commit.

    Attributes:
        header: what tells it from other commits.
        catalogue: what it holds.
        segments: its files, mapped. Segments that cannot be read are left out where damage is skipped.
        bases: the first row of each segment, and how many rows there are.
        live: [N], rows that are neither deleted nor lost.
        prepared: how search was prepared, if it was.
        damage: what cannot be read, in words; empty where damage is refused.
        lost: rows that are lost to it.
        ranker: ranks the rows.
        opened: the segments by their files, for the next commit's snapshot.
        watch: of the segments' files.
    """

    header: Header
    catalogue: Catalogue
    segments: tuple[Segment, ...]
    bases: tuple[int, ...]
    live: NDArray[np.bool_]
    prepared: Preparation | None
    damage: tuple[str, ...]
    lost: int
    ranker: Ranker
    opened: Mapping[Hashable, OpenSegment]
    watch: Watch

    def locate(self, row: int) -> tuple[int, int]:
        """(index of the segment, position in it) of a row."""
        index = bisect_right(self.bases, row) - 1
        return index, row - self.bases[index]

    def row(self, row: int) -> Row:
        """Id and metadata of a row."""
        index, position = self.locate(row)
        return self.segments[index].table.row(position)

    def rows(self) -> list[Row]:
        """Ids and metadata of all rows that are alive, in order."""
        return [
            row
            for segment, live in zip(self.segments, self._split(), strict=True)
            for position, row in enumerate(segment.table.rows())
            if live[position]
        ]

    def find(self, ids: Sequence[str]) -> dict[str, int]:
        """The rows of those ids that exist."""
        found: dict[str, int] = {}
        hashes = hash_ids(ids)
        for segment, base, live in zip(self.segments, self.bases, self._split(), strict=False):
            for id, position in segment.table.find(ids, hashes):
                if live[position]:
                    found[id] = base + position
        return found

    def passing(self, condition: Filter) -> tuple[NDArray[np.bool_], set[str]]:
        """[N], which rows pass a filter, and the keys that the rows have."""
        masks, keys = [], set[str]()
        for segment, live in zip(self.segments, self._split(), strict=True):
            mask, found = _passing(segment, condition)
            masks.append(mask & live)
            keys |= found
        return np.concatenate(masks) if masks else np.zeros(0, bool), keys

    def recheck(self, *, may_be_removed: bool = False) -> bool:
        """Whether a file was touched since the last check; GalleryCorrupt if one was changed. See store/files.py."""
        return self.watch.recheck(may_be_removed=may_be_removed)

    def _split(self) -> list[NDArray[np.bool_]]:
        return np.split(self.live, self.bases[1:-1]) if self.segments else []


def open_newest(folder: Path, before: Snapshot | None, damaged: Damaged, rank: Rank) -> Snapshot:
    """The newest commit of a gallery; see `open_snapshot`.

    Raises:
        GalleryError: there is no gallery, or it cannot be read.
        GalleryCorrupt: a file is missing or damaged, and damage is refused.
    """
    while True:
        found = read_newest(folder)
        try:
            return open_snapshot(folder, found, before, damaged, rank)
        except FileNotFoundError as error:
            if newest_header(folder) == found[0]:
                raise GalleryCorrupt(f"{error.filename} is missing: {folder} is incomplete") from error
            # A newer commit does not need that file any more, and its writer has removed it.


def open_snapshot(
    gallery: Path,
    commit: tuple[Header, Catalogue, Sequence[RowTable] | None],
    before: Snapshot | None,
    damaged: Damaged,
    rank: Rank,
) -> Snapshot:
    """A commit; files already mapped, and pages already checked, are taken over from the snapshot before.

    None is taken over if the name of one is another file's now.

    Args:
        gallery: its folder.
        commit: what to open, and the rows of each segment where they do not lie in files.
        before: an older snapshot of the same gallery.
        damaged: `skip` reads every byte of new files and leaves out the rows that cannot be read.
        rank: makes the ranker.

    Raises:
        FileNotFoundError: a file is missing, and damage is refused.
        GalleryError: it cannot be read.
        GalleryCorrupt: a file is damaged, and damage is refused.
    """
    header, catalogue, tables = commit
    folder = gallery / SEGMENTS
    check_folder(folder)
    damage: list[str] = []
    prepared = _preparation(folder, catalogue, before, damaged, damage)
    plan = None if prepared is None else prepared.plan
    known = {} if before is None or before.watch.replaced or tables is not None else before.opened
    opened: dict[Hashable, OpenSegment] = {}
    for i, record in enumerate(catalogue.segments):
        if plan is None:
            record = replace(record, prepared=None)
        whole = None if record.prepared is None or catalogue.prepared is None else catalogue.prepared.file
        key = (*record.files, whole)
        found = known.get(key)
        if found is None:
            opening = _open_intact if damaged == "skip" else _open_whole
            found = opening(folder, record, catalogue.settings, plan, None if tables is None else tables[i])
        opened[(i, key) if tables is not None else key] = found
    pairs = list(zip(catalogue.segments, opened.values(), strict=True))
    segments = tuple(found.segment for _, found in pairs if found.segment is not None)
    alive = [record.live & ~found.lost for record, found in pairs if found.segment is not None]
    lost = sum(int(np.count_nonzero(record.live & found.lost)) for record, found in pairs)
    return Snapshot(
        header=header,
        catalogue=catalogue,
        segments=segments,
        bases=tuple(accumulate(map(len, alive), initial=0)),
        live=np.concatenate(alive) if alive else np.zeros(0, bool),
        prepared=prepared,
        damage=(*damage, *(text for _, found in pairs for text in found.damage)),
        lost=lost,
        ranker=rank(segments, plan),
        opened=opened,
        watch=Watch([file for segment in segments for file in segment.files]),
    )


def _preparation(
    folder: Path, catalogue: Catalogue, before: Snapshot | None, damaged: Damaged, damage: list[str]
) -> Preparation | None:
    """The preparation: the very one of the snapshot before if it is the same, as parts compare plans by identity."""
    record = catalogue.prepared
    if before is not None and before.prepared is not None and before.catalogue.prepared == record:
        return before.prepared
    try:
        return load_preparation(record, folder, catalogue.settings.dim)
    except (FileNotFoundError, GalleryCorrupt) as error:
        if damaged == "refuse":
            raise
        damage.append(describe(error))
        return None


def _open_whole(
    folder: Path, record: SegmentRecord, settings: GallerySettings, plan: SearchPlan | None, table: RowTable | None
) -> OpenSegment:
    """A segment of which nothing is damaged, as far as opening it reads."""
    return OpenSegment(Segment(folder, record, settings, plan, table), np.zeros(len(record.live), bool))


def _open_intact(
    folder: Path, record: SegmentRecord, settings: GallerySettings, plan: SearchPlan | None, table: RowTable | None
) -> OpenSegment:
    """What of a segment can be read; reads its files whole."""
    damage: list[str] = []
    if record.prepared is not None:
        try:
            damage += MappedFile(folder, record.prepared).damaged()
        except (FileNotFoundError, GalleryCorrupt) as error:
            damage.append(describe(error))
        if damage:  # what preparing added is not needed to search exactly
            record = replace(record, prepared=None)
    try:
        segment = Segment(folder, record, settings, plan, table)
    except (FileNotFoundError, GalleryCorrupt) as error:
        return OpenSegment(None, np.ones(len(record.live), bool), (*damage, describe(error)))
    found = segment.damaged()
    if not found:
        return OpenSegment(segment, np.zeros(len(record.live), bool), tuple(damage))
    lost = segment.damaged_rows()
    segment.table = _held(segment.table, lost)
    return OpenSegment(segment, lost, (*damage, *found))


def _held(table: RowTable, lost: NDArray[np.bool_]) -> RowTable:
    """The rows that are left, in memory: a damaged file may have lost the order that ids are found by."""
    ids: list[str | None] = [None] * len(table)
    metadata = ["{}"] * len(table)
    for position in np.flatnonzero(~lost).tolist():
        ids[position], metadata[position] = table.text(position)
    return HeldRows(ids, metadata)


def _passing(segment: Segment, condition: Filter) -> tuple[NDArray[np.bool_], frozenset[str]]:
    """[rows], which pass a filter, deleted ones included, and all keys of their metadata."""
    found = segment.masks.get(condition)
    if found is None:
        rows = segment.table.rows()
        mask = np.fromiter((condition.matches(row.metadata) for row in rows), bool, len(rows))
        found = mask, frozenset(key for row in rows for key in row.metadata)
        if len(segment.masks) >= _MASKS:
            segment.masks.pop(next(iter(segment.masks)), None)
        segment.masks[condition] = found
    return found
