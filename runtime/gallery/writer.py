"""Changes to a gallery: one writer at a time, beside any number of readers.

A change is: write new files, make them durable, then one transaction of the catalogue. Files are never changed once
written. So a crash at any point leaves the last commit; files no commit names are swept when the next writer opens.
"""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import filelock
import numpy as np
from numpy.typing import NDArray

from ..embeddings import Embeddings
from ..errors import GalleryError, GalleryLocked, InputError
from ..files import publish
from .prepare import FastScan, fit_basis, load_fast, measure, query_axes
from .proof.bounds import no_axes
from .proof.rows import ArrayPart, array_part, pack_rows
from .settings import GallerySettings
from .store.catalogue import CATALOGUE, SCHEMA, Catalogue, Relabel, Row, SegmentRecord, checked_meta, is_gallery
from .store.files import SEGMENTS, FileRecord, write_arrays
from .store.segments import Segment, fast_arrays, segment_arrays
from .values import checked_ids, checked_metadata

_log = logging.getLogger(__name__)
LOCK = "writer.lock"
SEGMENT_BYTES = 512 << 20  # of vectors in one file: what add and compact hold in memory at once


class GalleryWriter:
    """The one writer of a gallery; a context manager that gives the lock back.

    `GalleryWriter.open(path)` opens an existing gallery and `GalleryWriter.create(path, settings)` makes a new one; the
    constructor takes what they have opened.

    Attributes:
        path: the gallery's folder.
        settings: what was fixed when the gallery was made.
    """

    def __init__(
        self, path: Path, settings: GallerySettings, catalogue: Catalogue, lock: filelock.BaseFileLock
    ) -> None:
        self.path = path
        self.settings = settings
        self._segments = path / SEGMENTS
        self._catalogue = catalogue
        self._lock = lock

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open the gallery in a folder for writing, and remove the files that an interrupted change left there.

        Raises:
            GalleryLocked: another process, or this one, is already writing.
            GalleryError: there is no gallery, or its folder cannot be written.
        """
        folder = Path(path)
        if not is_gallery(folder):
            raise GalleryError(f"{folder} is not a gallery; make one with: chan index BUNDLE IMAGES -o {folder}")
        lock = filelock.FileLock(folder / LOCK, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise GalleryLocked(f"{folder} is being written by another process; wait for it to end") from error
        except OSError as error:
            raise GalleryError(f"{folder} cannot be written: {error.strerror or error}") from error
        try:
            catalogue = Catalogue(folder)
            writer = cls(folder, GallerySettings.from_dict(checked_meta(catalogue, folder)), catalogue, lock)
            writer._mend_ids()
            writer._sweep()
        except BaseException:
            lock.release()
            raise
        return writer

    @classmethod
    def create(cls, path: str | Path, settings: GallerySettings) -> Self:
        """Make an empty gallery and open it for writing; PATH must not exist yet, or be an empty folder.

        Raises:
            GalleryError: something is already there, or it cannot be written.
        """
        folder = Path(path)
        new = folder / f"{CATALOGUE}.new"
        leftovers = {SEGMENTS, LOCK, new.name, f"{new.name}-wal", f"{new.name}-shm"}  # of an interrupted creation
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if {entry.name for entry in folder.iterdir()} - leftovers:
                raise GalleryError(f"{folder} already exists and is not empty; choose another folder, or add to it")
            (folder / SEGMENTS).mkdir(exist_ok=True)
            new.unlink(missing_ok=True)
            catalogue = Catalogue(folder=folder, create=True, name=new.name)
            with catalogue.transaction():
                catalogue.create_tables()
                catalogue.set_meta("schema", SCHEMA)
                catalogue.set_meta("settings", settings.to_dict())
                catalogue.set_meta("generation", 0)
                catalogue.set_meta("next_segment", 1)
                catalogue.set_meta("plain_ids", True)
            catalogue.close()
            publish(new, folder / CATALOGUE)
        except OSError as error:
            raise GalleryError(f"{folder} cannot be written: {error.strerror or error}") from error
        return cls.open(folder)

    def close(self) -> None:
        """Give the lock back."""
        self._catalogue.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Rows that are not deleted."""
        return sum(int(record.live.sum()) for record in self._catalogue.segments())

    def describe(self) -> str:
        """Rows, segments and bytes in words."""
        records = self._catalogue.segments()
        size = sum(file.length for r in records for file in (r.file, r.fast) if file is not None)
        rows = sum(int(record.live.sum()) for record in records)
        each = f", {size / rows / 1e3:.1f} KB a row" if rows else ""
        return f"{rows} {self.settings.kind} in {len(records)} segments, {size / 1e6:.1f} MB{each}"

    def check(self, settings: GallerySettings) -> None:
        """Raise unless rows of these settings may be added here.

        Raises:
            GalleryError: the gallery was made with another model.
            InputError: it holds the other kind of rows, or another fine copy.
        """
        self.settings.check_model(settings.model, self.path)
        for name in ("kind", "fine"):
            mine, asked = getattr(self.settings, name), getattr(settings, name)
            if mine != asked:
                raise InputError(f"{name} must be this gallery's {mine}, got {asked}")

    def ids(self, among: Iterable[str | int]) -> set[str]:
        """Those of the given ids that the gallery has."""
        return set(self._catalogue.find(checked_ids(among, "among")))

    def rows(self) -> list[Row]:
        """Every row's id and metadata, in order of addition."""
        return self._catalogue.rows()

    @property
    def roots(self) -> Mapping[str, str]:
        """Name -> folder of the roots that rows were indexed from (identity.py)."""
        found: Mapping[str, str] | None = self._catalogue.meta("roots")
        return found or {}

    def relabel(self, changes: Iterable[Relabel], roots: Mapping[str, str] | None = None) -> None:
        """Give rows other ids or metadata in one commit; their vectors and their order stay.

        Args:
            changes: which rows, and what they become.
            roots: what `roots` becomes; None leaves it.

        Raises:
            InputError: an id that the gallery does not have, one that it has already, or metadata with no JSON form.
        """
        changes = list(changes)
        ids = checked_ids((change.id for change in changes), "changes")
        new_ids = checked_ids((change.new_id for change in changes), "changes")
        metadata = checked_metadata([change.metadata for change in changes])
        found = self._catalogue.find(ids)
        missing = [id for id in ids if id not in found]
        if missing:
            raise InputError(f"changes: not in the gallery: {', '.join(missing[:5])}")
        there = set(self._catalogue.find(new_ids)) - set(ids)
        if there or len(set(new_ids)) < len(new_ids):
            raise InputError(f"changes: a new id must be free, got {', '.join(sorted(there)[:5]) or 'one twice'}")
        if not changes and (roots is None or roots == self.roots):
            return
        with self._commit():
            if roots is not None:
                self._catalogue.set_meta("roots", dict(roots))
            self._catalogue.relabel(
                [(found[id], new, details) for id, new, details in zip(ids, new_ids, metadata, strict=True)]
            )

    def set_bundle(self, bundle: str | Path) -> None:
        """Remember where the gallery's bundle is now; `Gallery.check_model` tells whether it is the right one."""
        self.settings = replace(self.settings, bundle=str(Path(bundle).resolve()))
        with self._commit():
            self._catalogue.set_meta("settings", self.settings.to_dict())

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
            InputError: lengths that differ; ids twice, or ids that exist; ids or metadata with no lossless form;
                embeddings of the other kind.
            TensorError: embeddings of another width, or values that are not finite.
            GalleryError: the disk is full or cannot be written; nothing was changed.
        """
        ids = checked_ids(ids)
        details = [{}] * len(ids) if metadata is None else checked_metadata(metadata)
        if not len(ids) == len(embeddings) == len(details):
            raise InputError(
                f"ids, embeddings, metadata: must agree, got {len(ids)}, {len(embeddings)}, {len(details)}"
            )
        if len(set(ids)) < len(ids):
            twice = [id for id, count in Counter(ids).items() if count > 1]
            raise InputError(f"ids: must be unique, got {', '.join(sorted(twice)[:5])}")
        if embeddings.kind not in (None, self.settings.kind):
            raise InputError(f"embeddings: must be of this gallery's {self.settings.kind}, got {embeddings.kind}")
        if embeddings.dim != self.settings.dim:
            raise InputError(f"embeddings: D must be this gallery's {self.settings.dim}, got {embeddings.dim}")
        existing = self._catalogue.find(ids)
        if existing and not overwrite:
            raise InputError(
                f"ids: already in the gallery (pass overwrite to replace them): {', '.join(list(existing)[:5])}"
            )
        vectors, starts = pack_rows(embeddings.vectors, embeddings.lengths, "embeddings")
        fast = self._fast()
        with self._new_files() as files:
            written = []
            for first, last in self._pieces(starts):
                part_starts = starts[first : last + 1] - starts[first]
                part_vectors = vectors[starts[first] : starts[last]]
                fitted = (None, None) if fast is None else (fast.basis, fast.axes)
                part = array_part(part_vectors, part_starts, self.settings.fine, *fitted)
                record = files.write(segment_arrays(part))
                prefix = None if fast is None else files.write(fast_arrays(part))
                written.append((first, last, record, prefix))
            with self._commit():
                self._catalogue.kill(existing.values())
                for first, last, record, prefix in written:
                    number, live = self._catalogue.new_number(), np.ones(last - first, bool)
                    self._catalogue.put_segment(SegmentRecord(number, number, record, prefix, last - first, live))
                    self._catalogue.put_rows(Row(ids[i], number, i - first, details[i]) for i in range(first, last))

    def delete(self, ids: Iterable[str | int]) -> None:
        """Remove rows in one commit; their bytes go with the next `compact`.

        Raises:
            InputError: ids the gallery does not have; nothing was changed.
        """
        ids = checked_ids(ids)
        found = self._catalogue.find(ids)
        missing = [id for id in dict.fromkeys(ids) if id not in found]
        if missing:
            raise InputError(f"ids: not in the gallery: {', '.join(missing[:5])}")
        with self._commit():
            self._catalogue.kill(found.values())

    def compact(self) -> None:
        """Rewrite segments that hold deleted rows or are small, in one commit; rows keep their order.

        Needs room on the disk for the rewritten rows beside the old ones. Readers go on with the old files.
        """
        records = self._catalogue.segments()
        fast = self._fast()
        with self._new_files() as files:
            replaced: list[tuple[list[SegmentRecord], _Merged | None]] = []
            for group in self._groups(records):
                if len(group) == 1 and group[0].live.all():
                    continue
                replaced.append((group, self._merge(group, files, fast)))
            with self._commit():
                for group, merged in replaced:
                    moved = [row for record in group for row in self._catalogue.rows_of(record.number)]
                    self._catalogue.drop_segments(record.number for record in group)
                    if merged is not None:
                        number = self._catalogue.new_number()
                        live = np.ones(len(moved), bool)
                        self._catalogue.put_segment(
                            SegmentRecord(number, group[0].place, merged.file, merged.fast, len(moved), live)
                        )
                        self._catalogue.move_rows(moved, number)
        self._sweep()

    def prepare_fast(self, queries: Embeddings | None = None) -> FastScan:
        """Fit search to the gallery as it is now and to its queries, in one commit.

        The fast scan is fitted to the gallery and its recall measured; exact search's intervals are narrowed along the
        directions that queries share.

        Args:
            queries: embeddings of the other side (captions for a gallery of images). All tell the directions; half
                choose how many rows fast search rescores, the other half measure its recall. Without queries the
                recall is unknown, and exact search rescores more.
        """
        records = self._catalogue.segments()
        segments = [Segment(self._segments, record.file) for record in records]
        axes = query_axes(queries, self.settings.dim)
        basis = fit_basis(segments, [record.live for record in records], self.settings.dim)
        with self._new_files() as files:
            basis_file = files.write({"basis": basis, "axes": axes})
            new = []
            for record, segment in zip(records, segments, strict=True):
                prefix = files.write(segment.prepare(basis, axes))
                new.append(replace(record, fast=prefix))
            parts = [Segment(self._segments, record.file, record.fast, basis, axes) for record in new]
            live = np.concatenate([record.live for record in new]) if new else np.zeros(0, bool)
            fast = measure(parts, live, self.settings, queries, basis, axes)
            with self._commit():
                for record in new:
                    self._catalogue.put_segment(record)
                self._catalogue.set_meta("fast", fast.to_dict(basis_file))
        self._sweep()
        return fast

    # -- pieces

    def _mend_ids(self) -> None:
        """Mend what versions did that stored ids as they came; once for each gallery."""
        if not self._catalogue.meta("plain_ids"):
            with self._commit():
                mended = self._catalogue.mend_ids()
                self._catalogue.set_meta("plain_ids", True)
            if mended:
                _log.warning("%s: %d ids that were no plain text are text now", self.path, mended)

    def _fast(self) -> FastScan | None:
        return load_fast(self._catalogue, self._segments)

    def _pieces(self, starts: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Rows in pieces of at most SEGMENT_BYTES of fine vectors, one row at least."""
        limit = max(1, SEGMENT_BYTES // (4 * self.settings.dim))
        edges = [0]
        while edges[-1] < len(starts) - 1:
            stop = int(np.searchsorted(starts, starts[edges[-1]] + limit, side="right")) - 1
            edges.append(max(edges[-1] + 1, stop))
        return list(pairwise(edges))

    def _groups(self, records: list[SegmentRecord]) -> Iterator[list[SegmentRecord]]:
        """Consecutive segments whose living rows fit one file."""
        group: list[SegmentRecord] = []
        size = 0.0
        for record in records:
            living = record.file.length * float(record.live.mean())
            if group and size + living > SEGMENT_BYTES:
                yield group
                group, size = [], 0.0
            group.append(record)
            size += living
        if group:
            yield group

    def _merge(self, group: list[SegmentRecord], files: _NewFiles, fast: FastScan | None) -> _Merged | None:
        """Files of the group's living rows, copied as they are; None where none lives."""
        if not any(record.live.any() for record in group):
            return None
        known = () if fast is None else (fast.basis, fast.axes)
        segments = [Segment(self._segments, record.file, record.fast, *known) for record in group]
        lengths = np.concatenate([np.diff(s.starts)[r.live] for s, r in zip(segments, group, strict=True)])

        def joined(name: str) -> NDArray[Any]:
            return np.concatenate([s.kept(name, r.live) for s, r in zip(segments, group, strict=True)])

        starts = np.r_[0, np.cumsum(lengths, dtype=np.int64)]
        part = ArrayPart(
            starts=starts,
            scale=joined("scale"),
            error=joined("error"),
            norm=joined("norm"),
            axes=no_axes(self.settings.dim),
            blocks=np.zeros((len(lengths), 0), np.float32),
            stored=joined("codes"),
            exact=joined("fine") if segments[0].has_fine else None,
        )
        file = files.write(segment_arrays(part))
        prefix = None
        if all(segment.prefix is not None for segment in segments):
            kept = [s.kept_fast(r.live) for s, r in zip(segments, group, strict=True)]
            prefix = files.write({name: np.concatenate([arrays[name] for arrays in kept]) for name in kept[0]})
        return _Merged(file, prefix)

    @contextmanager
    def _commit(self) -> Iterator[None]:
        with self._catalogue.transaction():
            yield
            self._catalogue.set_meta("generation", self._catalogue.meta("generation") + 1)

    @contextmanager
    def _new_files(self) -> Iterator[_NewFiles]:
        """Files that go again if what they are for fails."""
        files = _NewFiles(self._segments)
        try:
            yield files
        except BaseException as error:
            files.discard()
            if isinstance(error, OSError):
                raise GalleryError(
                    f"{self.path} cannot be written: {error.strerror or error}; nothing of this change was kept"
                ) from error
            raise

    def _sweep(self) -> None:
        """Remove files that no commit names: what a crash or a compaction left."""
        named = {file.name for r in self._catalogue.segments() for file in (r.file, r.fast) if file is not None}
        fast = self._catalogue.meta("fast")
        if fast is not None:
            named.add(fast["file"]["name"])
        for path in self._segments.iterdir():
            if path.name not in named:
                path.unlink()


@dataclass(frozen=True)
class _Merged:
    """The files of a compaction's new segment."""

    file: FileRecord
    fast: FileRecord | None


class _NewFiles:
    """Files written for one commit."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: list[str] = []

    def write(self, arrays: Mapping[str, NDArray[Any]]) -> FileRecord:
        record = write_arrays(self._folder, f"{uuid.uuid4().hex}.safetensors", arrays)
        self._names.append(record.name)
        return record

    def discard(self) -> None:
        for name in self._names:
            (self._folder / name).unlink(missing_ok=True)
