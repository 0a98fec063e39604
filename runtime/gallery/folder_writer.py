"""Changes to the rows of one folder: all rows of a gallery, or those of one shard.

A change is: write new files, make them durable, then publish the next catalogue (store/commit.py has that moment).
Small segments are merged as rows are added (store/merging.py), so a folder never has many of them.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..counts import counted
from ..errors import GalleryCorrupt, GalleryError, GalleryLocked
from ..progress import WorkCounter
from .prepare import load_preparation
from .preparing import RowsToPrepare
from .proof.prefix import SearchPlan
from .proof.rows import array_part
from .sharded.manifest import ShardEntry
from .store.catalogue import CATALOGUE, Catalogue, SegmentRecord, permissions, read_header
from .store.commit import NewFiles, publish
from .store.files import SEGMENTS, MappedFile
from .store.header import Header
from .store.lock import WriterLock
from .store.merging import Piece, groups_to_compact, pieces_of, segments_to_fold, without_rows, write_piece
from .store.refusals import missing_files, write_errors
from .store.rows import MappedRows, Row, hash_ids, row_arrays
from .store.segments import Segment

_log = logging.getLogger(__name__)
SEGMENT_BYTES = 512 << 20  # of vectors in one file: what add and compact hold in memory at once
Place = tuple[int, int]  # (index of a segment, position in it)


class FolderWriter:
    """The one writer of a folder's rows. What it is given was checked (row_writer.py); each change is one commit.

    Args:
        path: the folder, absolute.
        lock: held; `close` gives it back.
        header, catalogue: the newest commit.
        current: name of the file that holds the newest commit.
    """

    def __init__(
        self, path: Path, lock: WriterLock, header: Header, catalogue: Catalogue, current: str = CATALOGUE
    ) -> None:
        self.path = path
        self.lock = lock
        self.header = header
        self.catalogue = replace(catalogue, dropped=())  # whoever opened it has removed those files
        self._current = current
        self._segments = path / SEGMENTS
        self._tables: dict[str, MappedRows] = {}
        self._moving: Catalogue | None = None  # a commit that may be the newest one without this writer knowing it

    @property
    def entry(self) -> ShardEntry:
        """What a manifest says of the folder as a shard."""
        return ShardEntry(self.path.name, self.header, self.catalogue.count)

    def close(self) -> None:
        """Give the lock back; twice does no harm."""
        self.lock.release()
        self._tables.clear()

    def find(self, ids: Sequence[str]) -> dict[str, Place]:
        """Where the rows of those ids lie that exist."""
        self.catch_up()
        hashes = hash_ids(ids)
        found: dict[str, Place] = {}
        for index, record in enumerate(self.catalogue.segments):
            for id, position in self._table(record).find(ids, hashes):
                if record.live[position]:
                    found[id] = index, position
        return found

    def rows(self) -> list[Row]:
        """Every row's id and metadata, in order of addition."""
        self.catch_up()
        return [
            row
            for record in self.catalogue.segments
            for position, row in enumerate(self._table(record).rows())
            if record.live[position]
        ]

    def change(self, changes: Mapping[str, Any]) -> None:
        """Commit other values of the catalogue's fields; nothing where there are none."""
        if changes:
            with self.new_files() as files:
                self.commit(files, **changes)

    def relabel(self, texts: Mapping[str, tuple[str, str]], changes: Mapping[str, Any]) -> None:
        """Commit other ids and metadata of the rows that are here, and other values of the catalogue's fields.

        Args:
            texts: id -> the id and the metadata, as JSON, that it becomes; it may name rows of other folders.
            changes: the other values.
        """
        changed: dict[int, dict[int, tuple[str, str]]] = {}
        for id, (index, position) in self.find(list(texts)).items():
            changed.setdefault(index, {})[position] = texts[id]
        if not changed:
            self.change(changes)
            return
        segments = list(self.catalogue.segments)
        with self.new_files() as files:
            for index, rows in changed.items():
                all_ids, metadata = self._table(segments[index]).texts()
                for position, (new_id, text) in rows.items():
                    all_ids[position], metadata[position] = new_id, text
                segments[index] = replace(segments[index], rows=files.write(row_arrays(all_ids, metadata)))
            self.commit(files, segments=tuple(segments), **changes)

    def add(
        self,
        ids: list[str],
        vectors: NDArray[np.float32],
        starts: NDArray[np.int64],
        metadata: list[str],
        gone: Collection[Place],
    ) -> None:
        """Commit new rows behind the others.

        Args:
            ids: N of them.
            vectors, starts: [total, D] and [N + 1], as of `pack_rows`.
            metadata: of each row, as JSON.
            gone: rows that go in the same commit.
        """
        plan = self._plan()
        kept, written = without_rows(self.catalogue.segments, gone), []
        with self.new_files() as files:
            for first, last in pieces_of(starts, max(1, SEGMENT_BYTES // (4 * self.catalogue.settings.dim))):
                part_starts = starts[first : last + 1] - starts[first]
                part_vectors = vectors[starts[first] : starts[last]]
                part = array_part(part_vectors, part_starts, self.catalogue.settings.fine, plan)
                piece = Piece.of_part(part, ids[first:last], metadata[first:last])
                if first == 0:
                    kept, piece = self._fold(kept, piece, plan)
                written.append(write_piece(files, piece))
            self.commit(files, segments=(*kept, *written))

    def remove(self, places: Collection[Place]) -> None:
        """Commit the segments without the rows at these places."""
        if places:
            self.change({"segments": tuple(without_rows(self.catalogue.segments, places))})

    @property
    def rows_to_compact(self) -> int:
        """How many rows, deleted ones too, `compact` reads."""
        return sum(len(record.live) for group in self._groups() if not _stays(group) for record in group)

    def compact(self, work: WorkCounter) -> None:
        """Rewrite segments that hold deleted rows or are small; `work` counts the rows."""
        records, plan = self.catalogue.segments, self._plan()
        segments: list[SegmentRecord] = []
        with self.new_files() as files:
            for group in self._groups():
                if _stays(group):
                    segments += group
                else:
                    segments.append(write_piece(files, Piece.joined([self._stored(record, plan) for record in group])))
                    work.add(sum(len(record.live) for record in group))
            if len(segments) < len(records) or any(a is not b for a, b in zip(segments, records, strict=True)):
                self.commit(files, segments=tuple(segments))

    def to_prepare(self, files: NewFiles) -> RowsToPrepare:
        """Its rows, for `prepare_rows`."""
        return RowsToPrepare(self._segments, self.catalogue.segments, files)

    @contextmanager
    def new_files(self, as_before: str = "") -> Iterator[NewFiles]:
        """Files for one change, removed again if it fails; the error then says what is there as before."""
        self.catch_up()
        with write_errors(self.path, f"; nothing of this change was kept{as_before}"):
            mode = permissions(self.path / self._current)
            with NewFiles(self.path, self.catalogue, mode, self._current) as files:
                yield files

    def catch_up(self) -> None:
        """Take over a commit of this writer's own that was interrupted, where its moment had come; hold the lock."""
        self.lock.check()
        if self._moving is not None:
            header = self._moving.to_bytes()[0]
            if read_header(self.path, self._current) == header:
                self._take(header, self._moving)
            self._moving = None

    def commit(self, files: NewFiles, keep: Collection[str] = (), **changes: Any) -> None:
        """Publish the next catalogue and remove the files it does not need, but for those of the names `keep`."""
        self.lock.check()
        if read_header(self.path, self._current) != self.header:
            raise GalleryLocked(f"{self.path} was changed or replaced by another process; open it again")
        files.sync()
        following = self.catalogue.followed_by(next_file=files.next_file, **changes)
        following = replace(following, dropped=tuple(name for name in following.dropped if name not in keep))
        self._moving = following
        try:
            self._take(self._publish(following), following)
        except BaseException:  # of the disk, or Ctrl-C: before the moment of the commit or after it
            with suppress(GalleryError, OSError):
                self.catch_up()
            raise
        _log.debug("%s: committed %s", self.path, counted(len(following.segments), "segment"))
        self._remove_dropped()

    # -- pieces

    def _take(self, header: Header, catalogue: Catalogue) -> None:
        """Go on from a commit that is the newest one."""
        self.header, self.catalogue = header, catalogue
        names = {record.rows.name for record in catalogue.segments}
        self._tables = {name: table for name, table in self._tables.items() if name in names}
        self._moving = None

    def _publish(self, following: Catalogue) -> Header:
        return publish(self.path, following, permissions(self.path / self._current), self._current)

    def _remove_dropped(self) -> None:
        left = []
        for name in self.catalogue.dropped:
            try:
                (self._segments / name).unlink(missing_ok=True)
            except OSError:
                left.append(name)
        self.catalogue = replace(self.catalogue, dropped=tuple(left))

    def _table(self, record: SegmentRecord) -> MappedRows:
        table = self._tables.get(record.rows.name)
        if table is None:
            with missing_files(self.path):
                table = MappedRows(MappedFile(self._segments, record.rows), len(record.live))
            self._tables[record.rows.name] = table
        return table

    def _plan(self) -> SearchPlan | None:
        with missing_files(self.path):
            prepared = load_preparation(self.catalogue.prepared, self._segments, self.catalogue.settings.dim)
        return None if prepared is None else prepared.plan

    def _fold(
        self, records: list[SegmentRecord], piece: Piece, plan: SearchPlan | None
    ) -> tuple[list[SegmentRecord], Piece]:
        """The segments that stay, and the new rows behind those of the segments that do not."""
        count = segments_to_fold([record.living_bytes for record in records], piece.bytes, SEGMENT_BYTES)
        if not count:
            return records, piece
        try:
            old = [self._stored(record, plan) for record in records[-count:]]
        except GalleryCorrupt as error:  # what is damaged stays apart from what is added
            _log.warning("small segments were not merged: %s", error)
            return records, piece
        return records[:-count], Piece.joined([*old, piece])

    def _groups(self) -> list[tuple[SegmentRecord, ...]]:
        """The segments as `compact` puts them together."""
        records = self.catalogue.segments
        return [records[part] for part in groups_to_compact([one.living_bytes for one in records], SEGMENT_BYTES)]

    def _stored(self, record: SegmentRecord, plan: SearchPlan | None) -> Piece:
        with missing_files(self.path):
            segment = Segment(self._segments, record, self.catalogue.settings, plan)
            piece = Piece.of_segment(segment, record.live)
        segment.check_untouched()
        return piece


def _stays(group: Sequence[SegmentRecord]) -> bool:
    """Whether compacting leaves these segments as they are."""
    return len(group) == 1 and bool(group[0].live.all())
