"""Saving what can be saved of a damaged gallery."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GalleryCorrupt, InputError
from .kernels.layout import stored_width
from .prepare import load_preparation
from .proof.fixed16 import join_bytes
from .proof.prefix import SearchPlan
from .proof.rows import array_part
from .settings import FINE_DTYPES, GallerySettings
from .sharded import give_up
from .sharded.manifest import is_sharded
from .sharded.writer import ShardedWriter
from .store.array_file import FileRecord
from .store.catalogue import CATALOGUE, Catalogue, PreparedRecord, SegmentRecord, permissions, read_catalogue
from .store.commit import NewFiles, publish, sweep
from .store.files import SEGMENTS, MappedFile
from .store.lock import WriterLock
from .store.mapping import check_folder, describe
from .store.merging import Piece, write_piece
from .store.newest import is_old
from .store.old import upgrade
from .store.refusals import write_errors
from .store.rows import MappedRows
from .store.segments import Segment

DAMAGED = "damaged"  # the folder that damaged files are moved to


@dataclass(frozen=True)
class Repair:
    """What a repair did.

    Attributes:
        damage: what was damaged, in words; empty where nothing was, and then nothing was changed.
        kept: rows that the gallery has now.
        saved: rows among them whose files were written again.
        lost: the rows that could not be read: their ids, or their places where the id is lost too.
        moved: damaged files, which lie in GALLERY/damaged now. A better copy of one may be there one day.
        given_up: shards that are no longer part of the gallery, each with its rows and why, in words.
    """

    damage: tuple[str, ...]
    kept: int
    saved: int
    lost: tuple[str, ...]
    moved: tuple[str, ...]
    given_up: tuple[str, ...] = ()


def repair_gallery(path: str | Path, *, give_up_missing: bool = False) -> Repair:
    """Write the readable rows of damaged files to new files, in one commit, and leave the rest of a gallery as it is.

    A row is saved where its id, its metadata and its fine copy are intact (its codes and what was measured of them, in
    a gallery without fine copies); codes are computed again. Damage of what preparing added loses no row.

    Args:
        path: the gallery.
        give_up_missing: first take the shards that are missing, or whose catalogue is damaged, out of a gallery in
            shards, in a commit of its own. Their rows are lost.

    Raises:
        InputError: shards are to be given up in a gallery that is not in shards.
        GalleryLocked: a writer is at work.
        GalleryCorrupt: the catalogue itself is damaged, so that nothing says which files belong together; a shard is
            missing, and is not to be given up.
        GalleryError: there is no gallery, or it cannot be written; nothing was changed.
    """
    folder = Path(path).absolute()
    if is_sharded(folder):
        given_up = give_up.give_up_missing(folder, DAMAGED) if give_up_missing else []
        return replace(_repair_shards(folder), given_up=tuple(given_up))
    if give_up_missing:
        raise InputError(f"give_up_missing: must be False for a gallery that is not in shards, got True for {folder}")
    lock = WriterLock(folder)
    try:
        check_folder(folder / SEGMENTS)
        with write_errors(folder):
            unsure = upgrade(folder, keep_unsure=True) if is_old(folder) else []
            _, catalogue = read_catalogue(folder)
            sweep(folder, replace(catalogue, dropped=()), catalogue.files)  # what an interrupted change left
            mode = permissions(folder / CATALOGUE)
            with NewFiles(folder, catalogue, mode) as files:
                return _repair(folder, catalogue, files, mode, unsure)
    finally:
        lock.release()


def _repair(folder: Path, catalogue: Catalogue, files: NewFiles, mode: int, unsure: list[str]) -> Repair:
    found = _salvage(folder / SEGMENTS, catalogue, files)
    if found.damage:
        files.sync()
        following = catalogue.followed_by(segments=found.records, prepared=found.prepared, next_file=files.next_file)
        following = replace(following, dropped=tuple(name for name in following.dropped if name not in found.bad))
        publish(folder, following, mode)
        for name in following.dropped:
            (folder / SEGMENTS / name).unlink(missing_ok=True)
        catalogue = following
    moved = tuple(_move(folder, found.bad)) if found.damage else ()
    return Repair((*unsure, *found.damage), catalogue.count, found.saved, tuple(found.lost), moved)


def _repair_shards(folder: Path) -> Repair:
    """Repair what is damaged in each shard, in one commit; every shard must be there with its catalogue."""
    with ShardedWriter.open(folder) as writer:
        found: list[tuple[Path, _Salvage]] = []
        with writer.changing() as shards:
            for shard in shards:
                with shard.new_files() as files:
                    salvage = _salvage(shard.path / SEGMENTS, shard.catalogue, files)
                    if salvage.damage:
                        changes = {"segments": salvage.records, "prepared": salvage.prepared}
                        shard.commit(files, keep=salvage.bad, **changes)
                        found.append((shard.path, salvage))
        moved = [f"{place.name}/{name}" for place, salvage in found for name in _move(place, salvage.bad)]
        return Repair(
            tuple(text for _, salvage in found for text in salvage.damage),
            len(writer),
            sum(salvage.saved for _, salvage in found),
            tuple(id for _, salvage in found for id in salvage.lost),
            tuple(moved),
        )


@dataclass(frozen=True)
class _Salvage:
    """What can be saved of the files of one folder.

    Attributes:
        records, prepared: of the next commit.
        damage: what is damaged, in words; empty where nothing is.
        lost: what is known of the rows that are lost.
        saved: rows that were written again.
        bad: names of the damaged files.
    """

    records: tuple[SegmentRecord, ...]
    prepared: PreparedRecord | None
    damage: list[str]
    lost: list[str]
    saved: int
    bad: set[str]


def _salvage(segments: Path, catalogue: Catalogue, files: NewFiles) -> _Salvage:
    damage, lost, saved = list[str](), list[str](), 0
    plan = _plan(segments, catalogue, damage)
    kept = catalogue.prepared if plan is not None else None
    bad: set[str] = set()
    if catalogue.prepared is not None and kept is None:
        bad.add(catalogue.prepared.file.name)
    records: list[SegmentRecord] = []
    for record in catalogue.segments:
        found = {file.name: _damage(segments, file) for file in record.files}
        damage += [text for texts in found.values() for text in texts]
        bad.update(name for name, texts in found.items() if texts)
        if not any(found.values()):
            try:
                Segment(segments, record, catalogue.settings, plan)
                records.append(record if plan is not None else replace(record, prepared=None))
                continue
            except GalleryCorrupt as error:
                damage.append(str(error))
                bad.update(file.name for file in record.files)
        piece, gone = _saved(segments, record, catalogue.settings, plan)
        lost += gone
        if piece is not None:
            saved += len(piece.ids)
            records.append(write_piece(files, piece))
    return _Salvage(tuple(records), kept, damage, lost, saved, bad)


def _plan(segments: Path, catalogue: Catalogue, damage: list[str]) -> SearchPlan | None:
    try:
        prepared = load_preparation(catalogue.prepared, segments, catalogue.settings.dim)
    except (FileNotFoundError, GalleryCorrupt) as error:
        damage.append(f"{describe(error)} (run chan gallery prepare again)")
        return None
    return None if prepared is None else prepared.plan


def _damage(folder: Path, record: FileRecord) -> list[str]:
    try:
        return MappedFile(folder, record).damaged()
    except (FileNotFoundError, GalleryCorrupt) as error:
        return [describe(error)]


def _saved(
    folder: Path, record: SegmentRecord, settings: GallerySettings, plan: SearchPlan | None
) -> tuple[Piece | None, list[str]]:
    """The readable rows of a segment that are alive, and what is known of the others."""
    alive = np.flatnonzero(record.live).tolist()
    table = _table(folder, record)
    texts: dict[int, tuple[str, str]] = {}
    for position in alive:
        with suppress(GalleryCorrupt):
            if table is not None:
                texts[position] = _checked(table, position)
    rows = _arrays(folder, record, settings) if texts else {}
    kept = [position for position in alive if position in texts and position in rows]
    lost = [_name(table, record, position) for position in alive if position not in texts or position not in rows]
    if not kept:
        return None, lost
    ids, metadata = [texts[position][0] for position in kept], [texts[position][1] for position in kept]
    joined = {name: np.concatenate([rows[position][name] for position in kept]) for name in rows[kept[0]]}
    lengths = np.array([len(rows[position][_needed(settings)[0]]) for position in kept], np.int64)
    if settings.fine == "none":
        return Piece(lengths, joined, None, ids, metadata), lost
    starts = np.r_[0, np.cumsum(lengths)]
    if settings.fine == "fixed16":
        codes, scale = joined["codes"][:, : settings.dim], np.repeat(joined["scale"], lengths)
        vectors = join_bytes(codes, joined["fine"], scale)
    else:
        vectors = joined["fine"].astype(np.float32)
    part = array_part(vectors, starts, settings.fine, plan)
    return Piece.of_part(part, ids, metadata), lost


def _name(table: MappedRows | None, record: SegmentRecord, position: int) -> str:
    """What is known of a row that is lost: its id, or its place."""
    with suppress(GalleryCorrupt):
        if table is not None:
            return table.id(position)
    return f"row {position} of {record.rows.name}"


def _checked(table: MappedRows, position: int) -> tuple[str, str]:
    """A row's id and its metadata as JSON; GalleryCorrupt where they cannot be read."""
    table.row(position)
    return table.text(position)


def _table(folder: Path, record: SegmentRecord) -> MappedRows | None:
    try:
        return MappedRows(MappedFile(folder, record.rows), len(record.live))
    except (FileNotFoundError, GalleryCorrupt):
        return None


def _needed(settings: GallerySettings) -> tuple[str, ...]:
    """The arrays that a row's vectors are saved from: one of them, and what it says nothing without."""
    if settings.fine == "none":
        return "codes", "scale", "error", "norm"
    return ("fine", "codes", "scale") if settings.fine == "fixed16" else ("fine",)


def _arrays(folder: Path, record: SegmentRecord, settings: GallerySettings) -> dict[int, dict[str, NDArray[Any]]]:
    """What a row is saved from, for each row where that is intact."""
    names, rows = _needed(settings), dict[int, dict[str, NDArray[Any]]]()
    try:
        file = MappedFile(folder, record.vectors)
        file.expect("starts", np.int64, len(record.live) + 1)
        starts = file.read("starts")
        if starts[0] != 0 or (np.diff(starts) < 1).any():
            return rows
        for name in names:
            if name == "codes":
                file.expect(name, np.uint8, int(starts[-1]), stored_width(settings.dim))
            elif name == "fine":
                file.expect(name, FINE_DTYPES[settings.fine], int(starts[-1]), settings.dim)
            else:
                file.expect(name, np.float32, len(record.live))
    except (FileNotFoundError, GalleryCorrupt):
        return rows
    for position in np.flatnonzero(record.live).tolist():
        with suppress(GalleryCorrupt):
            vectors = int(starts[position]), int(starts[position + 1])
            found = {
                name: file.read(name, *(vectors if name in ("codes", "fine") else (position, position + 1)))
                for name in names
            }
            if all(np.isfinite(array).all() for array in found.values()):
                rows[position] = found
    return rows


def _move(folder: Path, names: set[str]) -> Iterator[str]:
    (folder / DAMAGED).mkdir(exist_ok=True)
    for name in sorted(names):
        if os.path.lexists(folder / SEGMENTS / name):
            os.replace(folder / SEGMENTS / name, folder / DAMAGED / name)
            yield name
