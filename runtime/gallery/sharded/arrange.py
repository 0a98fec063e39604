"""The rows of a gallery cut into other shards, or put together in one folder; nothing is encoded again.

Rows keep their order and their bytes, so every search finds the same. Segments that go whole to one shard are taken
over as files; those that are cut, and small ones, are written again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from ...checks import check_positive
from ...errors import GalleryCorrupt, GalleryError, InputError
from ...files import atomic_folder
from ...progress import Progress, WorkCounter
from .. import folder_writer
from ..prepare import load_preparation
from ..proof.prefix import SearchPlan
from ..store.catalogue import Catalogue, SegmentRecord
from ..store.commit import NewFiles, publish
from ..store.create import create_gallery
from ..store.files import SEGMENTS
from ..store.merging import GROWTH, Piece, write_piece
from ..store.newest import read_newest
from ..store.rows import RowTable
from ..store.segments import Segment
from .manifest import ShardEntry, ShardManifest, is_sharded, read_manifest, read_pinned, shard_name, write_manifest


@dataclass(frozen=True)
class Source:
    """The rows of one folder.

    Attributes:
        folder: an ordinary gallery.
        catalogue: the commit of it to read.
        tables: the rows of each segment, where they do not lie in files.
    """

    folder: Path
    catalogue: Catalogue
    tables: Sequence[RowTable] | None = None


@dataclass(frozen=True)
class _Rows:
    """Some rows of a segment: those where `keep` is True."""

    source: Source
    record: SegmentRecord
    table: RowTable | None
    keep: NDArray[np.bool_]

    @property
    def whole(self) -> bool:
        """Whether the segment's files can be taken over as they are."""
        large = self.record.vectors.length * GROWTH >= folder_writer.SEGMENT_BYTES
        return large and self.table is None and bool(self.keep.all())

    def piece(self, plan: SearchPlan | None) -> Piece:
        record = self.record if plan is not None else replace(self.record, prepared=None)
        segment = Segment(self.source.folder / SEGMENTS, record, self.source.catalogue.settings, plan, self.table)
        piece = Piece.of_segment(segment, self.keep)
        segment.check_untouched()
        return piece


def split_gallery(path: str | Path, out: str | Path, shards: int, *, progress: Progress | None = None) -> ShardManifest:
    """Write the rows of a gallery to a new gallery in shards.

    Args:
        path: the gallery, in one folder or in shards.
        out: a folder that does not exist yet, or is empty.
        shards: how many; each gets the same number of rows, but for one row.
        progress: called with the rows that are done, and all rows.

    Raises:
        InputError: there are fewer rows than shards.
        GalleryError: there is no gallery, something is already at `out`, or it cannot be written; `out` stays as it is.
        GalleryCorrupt: bytes that must be read are not those that were committed.
    """
    sources, roots = _sources(Path(path).absolute())
    with _new_folder(Path(out)) as fresh:
        entries = write_shards(sources, shard_folders(fresh, 1, shards, sources), progress=progress)
        settings = sources[0].catalogue.settings
        manifest = ShardManifest(uuid4().hex, 0, settings, tuple(entries), shards + 1, roots)
        write_manifest(fresh, manifest)
    return manifest


def merge_gallery(path: str | Path, out: str | Path, *, progress: Progress | None = None) -> int:
    """Write the rows of a gallery in shards to a new gallery in one folder, and return their number.

    progress: called with the rows that are done, and all rows.

    Raises:
        GalleryError, GalleryCorrupt: as `split_gallery`.
    """
    sources, roots = _sources(Path(path).absolute())
    with _new_folder(Path(out)) as fresh:
        (entry,) = write_shards(sources, [fresh], roots, progress)
    return entry.rows


def shard_folders(folder: Path, first: int, count: int, sources: Sequence[Source]) -> list[Path]:
    """The folders of new shards of all rows of some galleries, by the number of the first.

    Raises:
        InputError: there are fewer rows than shards.
    """
    check_positive("shards", count)
    rows = sum(source.catalogue.count for source in sources)
    if count > max(1, rows):
        raise InputError(f"shards: must be at most the number of rows, {rows}, got {count}")
    return [folder / shard_name(number) for number in range(first, first + count)]


def write_shards(
    sources: Sequence[Source],
    folders: Sequence[Path],
    roots: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> list[ShardEntry]:
    """Write all rows of some galleries to new ones, in order, and each of these gets as many rows as the others.

    Search stays prepared where all sources were prepared together.

    Args:
        sources: of the same settings.
        folders: of the new galleries, which do not exist or are empty; no more than there are rows, or one.
        roots: what each new gallery keeps as its roots.
        progress: called with the rows that are done, and all rows.

    Raises:
        GalleryCorrupt: bytes that must be read are not those that were committed.
        OSError: the disk is full or refuses; some folders may have been made.
    """
    rows = [
        _Rows(source, record, None if source.tables is None else source.tables[i], record.live)
        for source in sources
        for i, record in enumerate(source.catalogue.segments)
    ]
    total = sum(int(np.count_nonzero(some.keep)) for some in rows)
    together = _prepared_together(sources)
    work = WorkCounter(total, progress)
    edges = [total * i // len(folders) for i in range(len(folders) + 1)]
    return [
        _write(folder, _between(rows, first, last), sources[0], together, roots or {}, work)
        for folder, (first, last) in zip(folders, pairwise(edges), strict=True)
    ]


def _between(rows: Sequence[_Rows], first: int, last: int) -> list[_Rows]:
    """The living rows from number `first` up to `last`."""
    found, base = [], 0
    for some in rows:
        numbers = base + np.cumsum(some.keep) - 1
        keep = some.keep & (numbers >= first) & (numbers < last)
        base += int(np.count_nonzero(some.keep))
        if keep.any():
            found.append(replace(some, keep=keep))
    return found


def _write(
    folder: Path, rows: Sequence[_Rows], source: Source, together: bool, roots: Mapping[str, str], work: WorkCounter
) -> ShardEntry:
    """Make one gallery."""
    lock, _, catalogue = create_gallery(folder, source.catalogue.settings)
    try:
        files = NewFiles(folder, catalogue, None)
        prepared = source.catalogue.prepared if together else None
        loaded = load_preparation(prepared, source.folder / SEGMENTS, source.catalogue.settings.dim)
        plan = None if loaded is None else loaded.plan
        if prepared is not None:
            prepared = replace(prepared, file=files.link(source.folder / SEGMENTS, prepared.file))
        records = _records(files, rows, plan, work)
        files.sync()
        catalogue = catalogue.followed_by(
            segments=tuple(records), prepared=prepared, next_file=files.next_file, roots=dict(roots)
        )
        header = publish(folder, catalogue, None)
        return ShardEntry(folder.name, header, catalogue.count)
    finally:
        lock.release()


def _records(files: NewFiles, rows: Sequence[_Rows], plan: SearchPlan | None, work: WorkCounter) -> list[SegmentRecord]:
    """The segments of a new gallery; `work` counts the rows that are read."""
    records: list[SegmentRecord] = []
    pieces: list[Piece] = []

    def write_pieces() -> None:
        if pieces:
            records.append(write_piece(files, Piece.joined(pieces)))
            pieces.clear()

    for some in rows:
        if some.whole:
            write_pieces()
            folder, record = some.source.folder / SEGMENTS, some.record
            vectors, texts = files.link(folder, record.vectors), files.link(folder, record.rows)
            kept = record.prepared if plan is not None else None
            prepared = None if kept is None else files.link(folder, kept)
            records.append(SegmentRecord(record.live, vectors, texts, prepared))
            work.add(len(record.live))
            continue
        piece = some.piece(plan)
        if sum(one.bytes for one in pieces) + piece.bytes > folder_writer.SEGMENT_BYTES:
            write_pieces()
        pieces.append(piece)
        work.add(len(piece.ids))
    write_pieces()
    return records


def _prepared_together(sources: Sequence[Source]) -> bool:
    """Whether one plan codes the rows of all sources."""
    plans = {
        None if one is None else (one.digits, one.file.length, one.file.sums)
        for one in (source.catalogue.prepared for source in sources)
    }
    return len(plans) == 1 and None not in plans


def _sources(folder: Path) -> tuple[list[Source], Mapping[str, str]]:
    """The rows of a gallery's newest commit, and its roots."""
    if not is_sharded(folder):
        _, catalogue, tables = read_newest(folder)
        return [Source(folder, catalogue, tables)], catalogue.roots
    manifest = read_manifest(folder)[1]
    sources = []
    for entry in manifest.shards:
        place = folder / entry.name
        try:
            sources.append(Source(place, read_pinned(place, entry.header)[1]))
        except FileNotFoundError as error:
            raise GalleryCorrupt(f"{place} is missing, or changed while it was read; try again") from error
    return sources, manifest.roots


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which then is at `out`."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise GalleryError(f"{out} already exists and is not empty; choose another folder")
    try:
        with atomic_folder(out) as fresh:
            yield fresh
    except FileNotFoundError as error:
        raise GalleryCorrupt(f"{error.filename} is missing, or was removed while it was read; try again") from error
    except OSError as error:
        raise GalleryError(f"{out} cannot be written: {error.strerror or error}") from error
