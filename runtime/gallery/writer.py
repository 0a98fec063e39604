"""Changes to a gallery: one writer at a time, beside any number of readers.

A change is: write new files, make them durable, then publish the next catalogue (store/commit.py has that moment).
Small segments are merged as rows are added (store/merging.py), so a gallery never has many of them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, overload

import numpy as np
from numpy.typing import NDArray

from ..contract import AlignmentConfig
from ..counts import counted
from ..embeddings import Embeddings, check_embeddings
from ..errors import GalleryCorrupt, GalleryError, GalleryLocked, InputError
from ..progress import Progress, WorkCounter
from .prepare import Preparation, load_preparation
from .preparing import RowsToPrepare, prepare_rows
from .proof.prefix import SearchPlan
from .proof.rows import array_part, pack_rows
from .settings import NO_MODEL, GallerySettings, Kind, Precision
from .sharded.manifest import in_shards, is_shard, is_sharded
from .store.catalogue import (
    CATALOGUE,
    SCHEMA,
    Catalogue,
    SegmentRecord,
    permissions,
    read_catalogue,
    read_header,
)
from .store.commit import NewFiles, Unconfirmed, publish, sweep
from .store.create import create_gallery, undo_creation
from .store.files import SEGMENTS, MappedFile
from .store.header import Header
from .store.lock import WriterLock, lock_to_open
from .store.mapping import check_folder
from .store.merging import Piece, groups_to_compact, pieces_of, segments_to_fold, without_rows, write_piece
from .store.newest import is_old, no_gallery
from .store.old import old_files, upgrade
from .store.refusals import missing_files, write_errors
from .store.rows import MappedRows, Relabel, Row, hash_ids, row_arrays
from .store.segments import Segment
from .values import as_json, check_known, check_relabels, check_unique, checked_ids, checked_metadata, checked_roots

_log = logging.getLogger(__name__)
SEGMENT_BYTES = 512 << 20  # of vectors in one file: what add and compact hold in memory at once
_Place = tuple[int, int]  # (index of a segment, position in it)


class GalleryWriter:
    """The one writer of a gallery; a context manager that gives the lock back.

    `GalleryWriter.open(path)` opens an existing gallery and `GalleryWriter.create(path, ...)` makes a new one; the
    constructor takes what they have opened.

    Attributes:
        path: the gallery's folder, absolute.
        settings: what was fixed when the gallery was made.
    """

    _current: ClassVar[str] = CATALOGUE  # the file that holds the newest commit

    def __init__(self, path: Path, lock: WriterLock, header: Header, catalogue: Catalogue) -> None:
        self.path = path
        self.settings = catalogue.settings
        self._segments = path / SEGMENTS
        self._lock = lock
        self._header = header
        self._catalogue = catalogue
        self._tables: dict[str, MappedRows] = {}
        self._is_new = False  # made by this writer

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open the gallery in a folder for writing, and remove the files that an interrupted change left there.

        A gallery that an older version made is upgraded.

        Raises:
            GalleryLocked: another process, or this one, is already writing.
            GalleryError: there is no gallery, its folder cannot be written, or its file system has no locks.
            GalleryCorrupt: its catalogue is not what was committed.
        """
        folder = Path(path).absolute()
        if not (os.path.lexists(folder / CATALOGUE) or is_old(folder)):
            raise in_shards(folder) if is_sharded(folder) else no_gallery(folder)
        if is_shard(folder):
            raise GalleryError(f"{folder} is a shard: change it through {folder.parent}, which its rows belong to")
        with lock_to_open(folder) as lock:
            check_folder(folder / SEGMENTS)
            with write_errors(folder):
                if is_old(folder):
                    upgrade(folder)
                header, catalogue = read_catalogue(folder)
                if header.schema != SCHEMA:
                    catalogue = catalogue.followed_by()
                    header = publish(folder, catalogue, permissions(folder / CATALOGUE))
                sweep(folder, catalogue, catalogue.files)
                for path in old_files(folder):  # that an upgrade left
                    path.unlink()
            return cls(folder, lock, header, replace(catalogue, dropped=()))

    @overload
    @classmethod
    def create(cls, path: str | Path, settings: GallerySettings) -> Self: ...

    @overload
    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        dim: int,
        alignment: AlignmentConfig,
        kind: Kind = "images",
        fine: Precision = "float32",
    ) -> Self: ...

    @classmethod
    def create(
        cls,
        path: str | Path,
        settings: GallerySettings | None = None,
        *,
        dim: int | None = None,
        alignment: AlignmentConfig | None = None,
        kind: Kind = "images",
        fine: Precision = "float32",
    ) -> Self:
        """Make an empty gallery, for a bundle's rows or for the embeddings of another model, and open it for writing.

        As a context manager it removes the gallery again if an error ends the block while there are no rows.

        Args:
            path: a folder that does not exist yet, or is empty but for hidden files and what an interrupted creation
                left.
            settings: what is fixed for the gallery's life, where a bundle encodes its rows (`gallery_settings`). The
                other arguments are for embeddings of other models and take its place.
            dim: D, width of the embeddings.
            alignment: how inner products become a score; `AlignmentConfig.maxsim()` for ColBERT and ColPali.
            kind: `images` for rows that queries choose vectors of, such as pages and documents; `captions` for the
                other side.
            fine: precision of the fine copy that exact search ranks by.

        Raises:
            InputError: neither settings, nor dim and alignment, or both; a value out of its range.
            GalleryError: something is already there, or it cannot be written.
        """
        if settings is None:
            if dim is None or alignment is None:
                raise InputError("create: needs settings, or dim and alignment")
            settings = GallerySettings(kind, dim, alignment, NO_MODEL, fine)
        elif not (dim is None and alignment is None):
            raise InputError("create: settings have dim and alignment already; give either")
        folder = Path(path).absolute()
        with write_errors(folder):
            lock, header, catalogue = create_gallery(folder, settings)
        writer = cls(folder, lock, header, catalogue)
        writer._is_new = True
        return writer

    def close(self) -> None:
        """Give the lock back; twice does no harm."""
        self._lock.release()
        self._tables.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._is_new and not self._catalogue.segments:
            with suppress(GalleryError):
                self._lock.check()
                undo_creation(self.path, self._lock)
        self.close()

    def __len__(self) -> int:
        """Rows that are not deleted."""
        return self._catalogue.count

    def describe(self) -> str:
        """Rows, segments and bytes in words."""
        return self._catalogue.describe()

    def check(self, settings: GallerySettings) -> None:
        """Raise unless rows of these settings may be added here.

        Raises:
            GalleryError: the gallery was made with another model.
            InputError: it holds the other kind of rows, another fine copy, vectors of another width, or scores in
                another way.
        """
        self.settings.check_rows(settings, self.path)

    def ids(self, among: Iterable[str | int]) -> set[str]:
        """Those of the given ids that the gallery has."""
        return set(self._find(checked_ids(among, "among")))

    def rows(self) -> list[Row]:
        """Every row's id and metadata, in order of addition."""
        self._lock.check()
        return [
            row
            for record in self._catalogue.segments
            for position, row in enumerate(self._table(record).rows())
            if record.live[position]
        ]

    @property
    def roots(self) -> Mapping[str, str]:
        """Name -> folder of the roots that rows were indexed from (indexing/identity.py)."""
        return self._catalogue.roots

    def relabel(self, changes: Iterable[Relabel], roots: Mapping[str, str] | None = None) -> None:
        """Give rows other ids or metadata in one commit; their vectors and their order stay.

        Args:
            changes: which rows, and what they become.
            roots: what `roots` becomes; None leaves it.

        Raises:
            InputError: an id that the gallery does not have, one that is changed twice, a new id that it has already,
                metadata with no JSON form, or roots that are not text.
            GalleryError: the disk is full or cannot be written; nothing was changed.
        """
        changes = list(changes)
        kept = self.roots if roots is None else checked_roots(roots)
        ids, new_ids = check_relabels(changes, self.ids)
        texts = as_json(checked_metadata([change.metadata for change in changes]))
        found = self._find(ids)
        if not changes and kept == self.roots:
            return
        changed: dict[int, dict[int, tuple[str, str]]] = {}
        for id, new_id, text in zip(ids, new_ids, texts, strict=True):
            index, position = found[id]
            changed.setdefault(index, {})[position] = new_id, text
        segments = list(self._catalogue.segments)
        with self._new_files() as files:
            for index, rows in changed.items():
                all_ids, metadata = self._table(segments[index]).texts()
                for position, (new_id, text) in rows.items():
                    all_ids[position], metadata[position] = new_id, text
                segments[index] = replace(segments[index], rows=files.write(row_arrays(all_ids, metadata)))
            self._commit(files, segments=tuple(segments), roots=kept)

    def set_bundle(self, bundle: str | Path) -> None:
        """Remember where the gallery's bundle is now; `Gallery.check_model` checks whether it is the right one."""
        settings = replace(self.settings, bundle=str(Path(bundle).resolve()))
        with self._new_files() as files:
            self._commit(files, settings=settings)
        self.settings = settings

    def add(
        self,
        ids: Iterable[str | int],
        embeddings: Embeddings,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        """Add rows in one commit: when this returns they are on the disk, and if it does not, none of them is.

        Args:
            ids: one for each row, unique: text, or integers, which become their decimal digits (values.py).
            embeddings: of the rows, from the gallery's model.
            metadata: JSON values for each row (path, boxes, caption, ...); NumPy's scalars and arrays are converted.
            overwrite: rows whose id exists take the place of the old ones, which go in the same commit; they count as
                new rows (ties are decided by the order of addition). Without it an existing id is an error.

        Raises:
            InputError: lengths that differ; ids without an order (a set); ids twice, or ids that exist; ids or metadata
                with no lossless form; embeddings of the other kind.
            TensorError: embeddings of another width, or values that are not finite.
            GalleryError: the disk is full or cannot be written; nothing was changed.
        """
        if isinstance(ids, set | frozenset):
            raise InputError(f"ids: must have an order, got a {type(ids).__name__}")
        check_embeddings("embeddings", embeddings)
        ids = checked_ids(ids)
        details = [{}] * len(ids) if metadata is None else checked_metadata(metadata)
        if not len(ids) == len(embeddings) == len(details):
            raise InputError(
                f"ids, embeddings, metadata: must agree, got {len(ids)}, {len(embeddings)}, {len(details)}"
            )
        check_unique(ids, "ids")
        if embeddings.kind not in (None, self.settings.kind):
            raise InputError(f"embeddings: must be of this gallery's {self.settings.kind}, got {embeddings.kind}")
        if embeddings.dim != self.settings.dim:
            raise InputError(f"embeddings: D must be this gallery's {self.settings.dim}, got {embeddings.dim}")
        existing = self._find(ids)
        if existing and not overwrite:
            raise InputError(
                f"ids: already in the gallery (pass overwrite to replace them): {', '.join(list(existing)[:5])}"
            )
        vectors, starts = pack_rows(embeddings.vectors, embeddings.lengths, "embeddings")
        texts = as_json(details)
        plan = self._plan()
        kept, written = without_rows(self._catalogue.segments, existing.values()), []
        with self._new_files() as files:
            for first, last in pieces_of(starts, max(1, SEGMENT_BYTES // (4 * self.settings.dim))):
                part_starts = starts[first : last + 1] - starts[first]
                part = array_part(vectors[starts[first] : starts[last]], part_starts, self.settings.fine, plan)
                piece = Piece.of_part(part, ids[first:last], texts[first:last])
                if first == 0:
                    kept, piece = self._fold(kept, piece, plan)
                written.append(write_piece(files, piece))
            self._commit(files, segments=(*kept, *written))

    def delete(self, ids: Iterable[str | int]) -> None:
        """Remove rows in one commit; their bytes go with the next `compact`, or when their segment is merged.

        Raises:
            InputError: ids the gallery does not have; nothing was changed.
            GalleryError: the disk is full or cannot be written; nothing was changed.
        """
        ids = checked_ids(ids)
        found = self._find(ids)
        check_known(ids, found, "ids")
        with self._new_files() as files:
            self._commit(files, segments=tuple(without_rows(self._catalogue.segments, found.values())))

    def compact(self, *, progress: Progress | None = None) -> None:
        """Rewrite segments that hold deleted rows or are small, in one commit; rows keep their order.

        Needs room on the disk for the rewritten rows beside the old ones. Readers go on with the old files.

        Args:
            progress: called with the rows that are done, and those of all segments that are rewritten.

        Raises:
            GalleryCorrupt: a segment that must be rewritten is damaged; nothing was changed.
            GalleryError: the disk is full or cannot be written; nothing was changed.
        """
        self.compact_counted(WorkCounter(self.rows_to_compact, progress))

    @property
    def rows_to_compact(self) -> int:
        """How many rows, deleted ones too, `compact` reads."""
        return sum(len(record.live) for group in self._groups() if not _stays(group) for record in group)

    def compact_counted(self, work: WorkCounter) -> None:
        """As `compact`; `work` counts the rows."""
        records, plan = self._catalogue.segments, self._plan()
        segments: list[SegmentRecord] = []
        with self._new_files() as files:
            for group in self._groups():
                if _stays(group):
                    segments += group
                else:
                    segments.append(write_piece(files, Piece.joined([self._stored(record, plan) for record in group])))
                    work.add(sum(len(record.live) for record in group))
            if len(segments) < len(records) or any(a is not b for a, b in zip(segments, records, strict=True)):
                self._commit(files, segments=tuple(segments))

    def prepare(
        self,
        queries: Embeddings | Iterable[Embeddings] | None = None,
        directions: NDArray[np.float32] | None = None,
        *,
        progress: Progress | None = None,
    ) -> Preparation:
        """Fit search to the gallery as it is now and to its queries, in one commit; rows are not encoded again.

        Args:
            queries: embeddings of the other side (captions for a gallery of images), in one piece or in several, which
                need less padding. All of them decide the axes; half choose the fastest way to search, the other half
                measure what it reads. Without queries nothing is measured.
            directions: [r, D], of queries that are not at hand (`read_directions`): they decide the axes where there
                are no queries. Without either, the axes are the gallery's own.
            progress: called with the work that is done and that of all: each row counts three times, as it is read to
                fit axes, coded along them, and searched to measure.

        Raises:
            InputError: the gallery keeps no fine copy, so that nothing could be certified, or directions are of another
                width.
            GalleryCorrupt: a segment is damaged; nothing was changed.
            GalleryError: the disk is full or cannot be written; nothing was changed.
        """
        with self._new_files() as files:
            rows = RowsToPrepare(self._segments, self._catalogue.segments, files)
            found, (changes,) = prepare_rows([rows], self.settings, queries, directions, progress)
            self._commit(files, **changes)
        return found

    # -- pieces

    def _find(self, ids: Sequence[str]) -> dict[str, _Place]:
        """Where the rows of those ids lie that exist."""
        self._lock.check()
        hashes = hash_ids(ids)
        found: dict[str, _Place] = {}
        for index, record in enumerate(self._catalogue.segments):
            for id, position in self._table(record).find(ids, hashes):
                if record.live[position]:
                    found[id] = index, position
        return found

    def _table(self, record: SegmentRecord) -> MappedRows:
        table = self._tables.get(record.rows.name)
        if table is None:
            with missing_files(self.path):
                table = MappedRows(MappedFile(self._segments, record.rows), len(record.live))
            self._tables[record.rows.name] = table
        return table

    def _plan(self) -> SearchPlan | None:
        with missing_files(self.path):
            prepared = load_preparation(self._catalogue.prepared, self._segments, self.settings.dim)
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
        records = self._catalogue.segments
        return [records[part] for part in groups_to_compact([one.living_bytes for one in records], SEGMENT_BYTES)]

    def _stored(self, record: SegmentRecord, plan: SearchPlan | None) -> Piece:
        with missing_files(self.path):
            segment = Segment(self._segments, record, self.settings, plan)
            piece = Piece.of_segment(segment, record.live)
        segment.check_untouched()
        return piece

    @contextmanager
    def _new_files(self) -> Iterator[NewFiles]:
        """Files that are removed again if what they are for fails."""
        self._lock.check()
        with write_errors(self.path, "; nothing of this change was kept"):
            mode = permissions(self.path / self._current)
            with NewFiles(self.path, self._catalogue, mode, self._current) as files:
                yield files

    def _commit(self, files: NewFiles, keep: Collection[str] = (), **changes: Any) -> None:
        """Publish the next catalogue and remove the files it does not need, but for those of the names `keep`."""
        self._lock.check()
        if read_header(self.path, self._current) != self._header:
            raise GalleryLocked(f"{self.path} was changed or replaced by another process; open it again")
        files.sync()
        following = self._catalogue.followed_by(next_file=files.next_file, **changes)
        following = replace(following, dropped=tuple(name for name in following.dropped if name not in keep))
        try:
            self._header = self._publish(following)
        except Unconfirmed as error:
            self._header, self._catalogue = error.header, following
            raise
        self._catalogue = following
        _log.debug("%s: committed %s", self.path, counted(len(following.segments), "segment"))
        self._tables = {
            r.rows.name: self._tables[r.rows.name] for r in following.segments if r.rows.name in self._tables
        }
        self._remove_dropped()

    def _publish(self, following: Catalogue) -> Header:
        return publish(self.path, following, permissions(self.path / self._current), self._current)

    def _remove_dropped(self) -> None:
        left = []
        for name in self._catalogue.dropped:
            try:
                (self._segments / name).unlink(missing_ok=True)
            except OSError:
                left.append(name)
        self._catalogue = replace(self._catalogue, dropped=tuple(left))


def _stays(group: Sequence[SegmentRecord]) -> bool:
    """Whether compacting leaves these segments as they are."""
    return len(group) == 1 and bool(group[0].live.all())
