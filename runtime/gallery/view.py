"""What a gallery holds at one moment: a commit of the gallery, or of each of its shards."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..counts import counted
from ..errors import GalleryCorrupt, GalleryError, GalleryMissing, quoted
from .compiled import open_core
from .settings import GallerySettings
from .sharded.manifest import (
    ShardEntry,
    check_shard,
    is_sharded,
    manifest_header,
    manifest_line,
    read_manifest,
    read_pinned,
)
from .snapshot import Damaged, Rank, Snapshot, open_newest, open_snapshot
from .store.catalogue import CATALOGUE, catalogue_line
from .store.files import MANIFEST
from .store.header import Header
from .store.mapping import describe
from .store.newest import is_same_gallery, newest_header, read_newest
from .store.rows import Row
from .store.segments import Segment
from .values import check_known
from .where import Filter

Place = tuple[int, int]  # (index of a shard, row in it)


@dataclass(frozen=True)
class Shard:
    """Some of a gallery's rows: all of them, unless it is a gallery in shards.

    Attributes:
        entry: what the manifest says of it; None where the gallery is not in shards.
        snapshot: its rows; None where the shard is missing or damaged and damage is skipped.
        problem: why it is missing, in words.
    """

    entry: ShardEntry | None
    snapshot: Snapshot | None
    problem: str = ""


@dataclass(frozen=True)
class View:
    """A gallery at one moment; it stays as it is whatever is committed meanwhile.

    Attributes:
        header: what tells this commit from others.
        settings: of the gallery.
        shards: in the order of their rows.
        head: while this is the newest commit, a file of this path begins with this line, and nothing has the third
            path; None where it is not asked whether it is the newest.
        opened: the snapshots of the shards that could be read, in order: all that a search sees.
    """

    header: Header
    settings: GallerySettings
    shards: tuple[Shard, ...]
    head: tuple[bytes, bytes, bytes | None] | None = None

    @property
    def opened(self) -> list[Snapshot]:
        """See above."""
        return [shard.snapshot for shard in self.shards if shard.snapshot is not None]

    @property
    def rows(self) -> int:
        """Rows that can be found."""
        return sum(int(np.count_nonzero(snapshot.live)) for snapshot in self.opened)

    @property
    def lost(self) -> int:
        """Rows that cannot be read."""
        whole = sum(shard.entry.rows for shard in self.shards if shard.entry is not None and shard.snapshot is None)
        return whole + sum(snapshot.lost for snapshot in self.opened)

    @property
    def damage(self) -> list[str]:
        """What cannot be read, in words."""
        texts = [text for snapshot in self.opened for text in snapshot.damage]
        return texts + [shard.problem for shard in self.shards if shard.snapshot is None]

    def without(self, index: int, problem: str) -> View:
        """This view where the shard that was opened as number `index` is missing."""
        broken = self.opened[index]
        shards = (replace(s, snapshot=None, problem=problem) if s.snapshot is broken else s for s in self.shards)
        return replace(self, shards=tuple(shards))

    def lacks(self, path: Path) -> str:
        """What an answer from this view lacks, in words."""
        listed = [(shard.entry, shard) for shard in self.shards if shard.entry is not None]
        texts = name_missing((entry, shard.problem if shard.snapshot is None else None) for entry, shard in listed)
        if not texts:
            lost = counted(self.lost, "row is lost to damage and was", "rows are lost to damage and were")
            return f"{lost} left out (chan gallery verify {quoted(path)})"
        damaged = sum(snapshot.lost for snapshot in self.opened)
        if damaged:
            texts.append(counted(damaged, "row that is damaged", "rows that are damaged"))
        return f"{lost_rows(self.lost, texts)}; see chan gallery verify {quoted(path)}"

    def find(self, ids: Sequence[str], name: str = "ids") -> list[Place]:
        """Where the rows with these ids are; InputError has the ids, called `name`, that the gallery does not have."""
        found: dict[str, Place] = {}
        for index, snapshot in enumerate(self.opened):
            found |= {id: (index, row) for id, row in snapshot.find(ids).items()}
        check_known(ids, found, name)
        return [found[id] for id in ids]

    def segments(self, ids: Sequence[str]) -> Iterator[tuple[Segment, int]]:
        """Of each row with these ids its segment, and its position there; raises as `find`."""
        return self.segments_at(self.find(ids))

    def segments_at(self, places: Iterable[Place]) -> Iterator[tuple[Segment, int]]:
        """Of the row at each place its segment, and its position there."""
        for shard, row in places:
            snapshot = self.opened[shard]
            index, position = snapshot.locate(row)
            yield snapshot.segments[index], position

    def all_rows(self) -> list[Row]:
        """Ids and metadata of the rows, in order."""
        return [row for snapshot in self.opened for row in snapshot.rows()]

    def allowed(self, ids: Sequence[str] | None, condition: Filter | None) -> list[NDArray[np.bool_]]:
        """For each snapshot [N], which rows may be found.

        Raises:
            InputError: an id that the gallery does not have; the filter compares a key that no row has.
        """
        masks = [snapshot.live for snapshot in self.opened]
        if ids is not None:
            wanted = [np.zeros(len(mask), bool) for mask in masks]
            for index, row in self.find(ids):
                wanted[index][row] = True
            masks = [mask & some for mask, some in zip(masks, wanted, strict=True)]
        if condition is not None:
            passing = [snapshot.passing(condition) for snapshot in self.opened]
            keys = {key for _, found in passing for key in found}
            if keys or any(len(mask) for mask, _ in passing):
                condition.check_keys(keys)
            masks = [mask & some for mask, (some, _) in zip(masks, passing, strict=True)]
        return masks

    @property
    def replaced(self) -> bool:
        """Whether the name of a file is another file's, as the last check found."""
        return any(snapshot.watch.replaced for snapshot in self.opened)

    def untouched(self, *, newest: bool = False) -> bool:
        """Whether one call to the core tells that no file was touched since the last check.

        False where it does not tell, and then `recheck` must be asked, and `newest_view` for the newest commit.

        Args:
            newest: whether this must be the gallery's newest commit as well.
        """
        core = open_core()
        watched = tuple(snapshot.watch.watched for snapshot in self.opened)
        head = self.head if newest else ()
        return core is not None and None not in watched and head is not None and core.untouched(watched, *head)

    def recheck(self) -> bool:
        """Whether a file was touched since the last check; GalleryCorrupt if one was changed. See store/files.py."""
        return True in [snapshot.recheck() for snapshot in self.opened]


def name_missing(shards: Iterable[tuple[ShardEntry, str | None]]) -> list[str]:
    """The shards that an answer lacks, each with its rows and why.

    Args:
        shards: all of a gallery, in the order of their rows, each with what is wrong with it, or None.
    """
    first, texts = 0, []
    for entry, problem in shards:
        if problem is not None:
            rows = f"row {first}" if entry.rows == 1 else f"rows {first} to {first + entry.rows - 1}"
            texts.append(f"{entry.name} with {rows} ({problem})")
        first += entry.rows
    return texts


def lost_rows(lost: int, texts: Iterable[str]) -> str:
    """What an answer lacks, in words: how many rows, and `texts`, which say which and why."""
    return f"{counted(lost, 'row is lost and was', 'rows are lost and were')} left out: {', '.join(texts)}"


def newest_settings(folder: Path) -> GallerySettings:
    """The settings of the gallery in a folder.

    Raises:
        GalleryError: there is no gallery, or it cannot be read.
        GalleryCorrupt: its catalogue is damaged.
    """
    return read_manifest(folder)[1].settings if is_sharded(folder) else read_newest(folder)[1].settings


def newest_view(folder: Path, before: View | None, damaged: Damaged, rank: Rank) -> View:
    """The newest commit of the gallery in a folder: `before` itself where that is the newest and no file was replaced.

    Args:
        folder: the gallery.
        before: an older view of it; what that has mapped is taken over.
        damaged: `skip` leaves out the rows, and the shards, that cannot be read.
        rank: makes the rankers.

    Raises:
        GalleryMissing: there is no gallery, or it is another one than before.
        GalleryError: it cannot be read.
        GalleryCorrupt: a file or a shard is missing or damaged, and damage is refused.
    """
    sharded = is_sharded(folder)
    if before is not None:
        header = manifest_header(folder) if sharded else newest_header(folder)
        if header == before.header and not before.replaced:
            return before
        if not is_same_gallery(before.header, header):
            raise GalleryMissing(f"{folder} was replaced by another gallery; open it again")
    view = _shards(folder, before, damaged, rank) if sharded else _folder(folder, before, damaged, rank)
    if before is not None and replace(view.settings, bundle=None) != replace(before.settings, bundle=None):
        raise GalleryMissing(f"{folder} was replaced by another gallery; open it again")
    return view


def pinned_view(folder: Path, entry: ShardEntry, settings: GallerySettings, before: View | None, rank: Rank) -> View:
    """One shard at the commit that a manifest names.

    Args:
        folder: the gallery in shards.
        entry: the shard, as the manifest names it.
        settings: of the gallery.
        before: an older view of the shard; what that has mapped is taken over.
        rank: makes the ranker.

    Raises:
        FileNotFoundError: the shard does not have that commit, any more or yet.
        GalleryError: it cannot be read, or another version wrote it.
        GalleryCorrupt: a file of it is damaged.
    """
    known = {} if before is None else {snapshot.header.gallery: snapshot for snapshot in before.opened}
    snapshot = _pinned(folder / entry.name, entry, settings, known, "refuse", rank)
    return View(entry.header, settings, (Shard(entry, snapshot),))


def _folder(folder: Path, before: View | None, damaged: Damaged, rank: Rank) -> View:
    old = None if before is None else before.shards[0].snapshot
    snapshot = open_newest(folder, old, damaged, rank)
    head = os.fsencode(folder / CATALOGUE), catalogue_line(snapshot.header), os.fsencode(folder / MANIFEST)
    return View(snapshot.header, snapshot.catalogue.settings, (Shard(None, snapshot),), head)


def _shards(folder: Path, before: View | None, damaged: Damaged, rank: Rank) -> View:
    while True:
        header, manifest = read_manifest(folder)
        known = {} if before is None else {snapshot.header.gallery: snapshot for snapshot in before.opened}
        shards: list[Shard] = []
        errors: list[Exception] = []
        for entry in manifest.shards:
            try:
                snapshot = _pinned(folder / entry.name, entry, manifest.settings, known, damaged, rank)
                shards.append(Shard(entry, snapshot))
            except (GalleryError, FileNotFoundError) as error:
                shards.append(Shard(entry, None, _problem(folder / entry.name, error)))
                errors.append(error)
        if errors and manifest_header(folder) != header:
            continue  # a newer commit does not need what is missing any more
        if errors and damaged == "refuse":
            if isinstance(errors[0], GalleryError) and "is missing" not in str(errors[0]):
                raise errors[0]
            problem = next(shard.problem for shard in shards if shard.snapshot is None)
            hint = "restore the shard from a copy, or search the others with --skip-damaged"
            raise GalleryCorrupt(f"{folder} is incomplete: {problem}; {hint}") from errors[0]
        head = os.fsencode(folder / MANIFEST), manifest_line(header), None
        return View(header, manifest.settings, tuple(shards), head)


def _pinned(
    folder: Path,
    entry: ShardEntry,
    settings: GallerySettings,
    known: Mapping[str, Snapshot],
    damaged: Damaged,
    rank: Rank,
) -> Snapshot:
    """The commit of a shard that the manifest names, which may be open already."""
    old = known.get(entry.header.gallery)
    if old is not None and old.header == entry.header and not old.watch.replaced:
        return old
    header, catalogue = read_pinned(folder, entry.header)
    check_shard(folder, catalogue, entry, settings)
    return open_snapshot(folder, (header, catalogue, None), old, damaged, rank)


def _problem(folder: Path, error: Exception) -> str:
    if not folder.is_dir():
        return f"{folder} is missing"
    return describe(error)
