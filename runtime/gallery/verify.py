"""Reading every byte of a gallery, and naming what is damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import GalleryCorrupt, GalleryError
from ..progress import Progress, WorkCounter
from .prepare import load_preparation
from .proof.prefix import SearchPlan
from .sharded.manifest import check_shard, is_sharded, manifest_header, read_manifest, read_pinned
from .store.catalogue import Catalogue, SegmentRecord
from .store.files import SEGMENTS, MappedFile
from .store.mapping import check_folder, describe
from .store.newest import newest_header, read_newest
from .store.rows import RowTable, row_arrays
from .store.segments import Segment


def verify_gallery(path: str | Path, *, progress: Progress | None = None) -> list[str]:
    """Read every byte of a gallery's newest commit and name what is damaged; empty where all is well.

    All of it is named: a missing file, each damaged page of a file with the arrays that lie there, arrays that are not
    of the shape or type the settings ask for, codes, measures and levels that do not bound the fine copy (so that no
    certificate rests on them), ids that cannot be found or occur twice.

    Args:
        path: the gallery.
        progress: called with the work that is done and that of all: each row counts twice, once for its bytes and once
            for what they mean. It starts again where a writer changes the gallery meanwhile.

    Raises:
        GalleryError: there is no gallery, or it cannot be read.
    """
    folder = Path(path).absolute()
    if is_sharded(folder):
        return _verify_shards(folder, progress)
    while True:
        try:
            header, catalogue, tables = read_newest(folder)
            check_folder(folder / SEGMENTS)
        except GalleryCorrupt as error:
            return [str(error)]
        work = WorkCounter(_amount(catalogue), progress)
        found = _problems(folder / SEGMENTS, catalogue, tables, set(), work)
        if not found or newest_header(folder) == header:
            return found


def _amount(catalogue: Catalogue) -> int:
    """The work of a commit: two for each row."""
    return sum(2 * len(record.live) for record in catalogue.segments)


def _verify_shards(folder: Path, progress: Progress | None) -> list[str]:
    while True:
        try:
            header, manifest = read_manifest(folder)
        except GalleryCorrupt as error:
            return [str(error)]
        found: list[str] = []
        catalogues: list[tuple[Path, Catalogue]] = []
        for entry in manifest.shards:
            place = folder / entry.name
            try:
                catalogue = read_pinned(place, entry.header)[1]
                check_shard(place, catalogue, entry, manifest.settings)
                check_folder(place / SEGMENTS)
                catalogues.append((place, catalogue))
            except (GalleryError, FileNotFoundError) as error:
                found.append(describe(error) if place.is_dir() else f"{place} is missing")
        work = WorkCounter(sum(_amount(catalogue) for _, catalogue in catalogues), progress)
        known: set[str] = set()
        for place, catalogue in catalogues:
            found += _problems(place / SEGMENTS, catalogue, None, known, work)
        if not found or manifest_header(folder) == header:
            return found


def _problems(
    folder: Path, catalogue: Catalogue, tables: Sequence[RowTable] | None, known: set[str], work: WorkCounter
) -> list[str]:
    """What is damaged of a commit.

    known: the ids of the shards before, to which those of this one are added.
    """
    found: list[str] = []
    plan = None
    try:
        prepared = load_preparation(catalogue.prepared, folder, catalogue.settings.dim)
        plan = None if prepared is None else prepared.plan
    except (GalleryError, FileNotFoundError) as error:
        found.append(describe(error))
    for i, record in enumerate(catalogue.segments):
        table = None if tables is None else tables[i]
        end = work.done + 2 * len(record.live)
        found += _segment_problems(folder, record, catalogue, plan, table, known, work)
        work.reach(end)
    return found


def _segment_problems(
    folder: Path,
    record: SegmentRecord,
    catalogue: Catalogue,
    plan: SearchPlan | None,
    table: RowTable | None,
    known: set[str],
    work: WorkCounter,
) -> list[str]:
    found: list[str] = []
    for file in record.files:
        if file.name:
            try:
                found += MappedFile(folder, file).damaged()
            except (GalleryError, FileNotFoundError) as error:
                found.append(describe(error))
    if found:
        return found
    work.add(len(record.live))
    try:
        segment = Segment(folder, record, catalogue.settings, plan, table)
        segment.check_bounds(work)
        ids, texts = segment.table.texts()
        segment.table.rows()
    except (GalleryError, FileNotFoundError) as error:
        return [describe(error)]
    where = f"{folder / record.vectors.name}"
    if table is None:
        rows = MappedFile(folder, record.rows)
        expected = row_arrays(ids, texts)
        if not all(np.array_equal(rows.read(name), expected[name]) for name in ("hashes", "order")):
            found.append(f"{rows.path}: hashes and order are not those of the ids")
    alive = [ids[position] for position in np.flatnonzero(record.live)]
    for id in alive:
        if id in known:
            found.append(f"{where}: the id {id!r} occurs twice")
        known.add(id)
    return found
