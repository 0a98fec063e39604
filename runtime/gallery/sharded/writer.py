"""Changes to a gallery in shards: one writer at a time, and each change is one commit of all shards together."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from ...counts import counted
from ...errors import GalleryError, GalleryLocked, InputError
from ...progress import Progress
from ..row_writer import RowWriter, in_turn
from ..settings import GallerySettings
from ..store.files import MANIFEST
from ..store.header import Header
from ..store.lock import WriterLock, lock_to_open
from ..store.refusals import write_errors
from ..values import check_known, checked_roots
from .arrange import Source, shard_folders, write_shards
from .manifest import (
    ShardEntry,
    ShardManifest,
    describe_shards,
    is_sharded,
    manifest_header,
    not_sharded,
    read_manifest,
    shard_number,
    write_manifest,
)
from .shard_writer import ShardWriter
from .staged import StagedShard

_log = logging.getLogger(__name__)


class ShardedWriter(RowWriter):
    """The one writer of a gallery in shards; it has the methods of `GalleryWriter`, and `rebalance`.

    New rows go to the last shard, so the order of the rows is the order of addition, as in one folder.

    Attributes:
        path: the gallery's folder, absolute.
    """

    _folders: Sequence[ShardWriter]

    def __init__(self, path: Path, lock: WriterLock, header: Header, manifest: ShardManifest) -> None:
        super().__init__(path, lock)
        self._header = header
        self._manifest = manifest
        self._moving: ShardManifest | None = None  # a commit that may be the newest one without this writer knowing it

    @classmethod
    def open(cls, path: str | Path, *, keep_staged: bool = False) -> Self:
        """Open the gallery in shards in a folder for writing, and finish or remove what an interrupted change left.

        Args:
            path: the gallery's folder.
            keep_staged: keep shards that no commit names (`StagedShard`), for a run that goes on filling them.

        Raises:
            GalleryLocked: another process, or this one, is already writing.
            GalleryError: there is none, or it cannot be written.
            GalleryCorrupt: its manifest or a shard is damaged, or a shard is missing.
        """
        folder = Path(path).absolute()
        if not is_sharded(folder):
            raise not_sharded(folder)
        with lock_to_open(folder) as lock:
            header, manifest = read_manifest(folder)
            writer = cls(folder, lock, header, manifest)
            with write_errors(folder):
                writer._open_shards()
                if not keep_staged:
                    writer._sweep()
            return writer

    @classmethod
    def create(
        cls,
        path: str | Path,
        lock: WriterLock,
        settings: GallerySettings,
        staged: Sequence[StagedShard],
        roots: Mapping[str, str] | None = None,
    ) -> Self:
        """Make a gallery of shards that were filled in its folder, in one commit, and open it for writing.

        Args:
            path: the folder, which holds no gallery yet.
            lock: of the folder; the writer gives it back.
            settings: of every shard.
            staged: in the order of their rows, one at least. They are closed.
            roots: as of `roots`.

        Raises:
            GalleryError: it cannot be written; the shards are as they were.
        """
        folder = Path(path).absolute()
        entries = tuple(shard.entry for shard in staged)
        name = hashlib.sha256("".join(entry.header.digest for entry in entries).encode()).hexdigest()[:32]
        following = 1 + max(number for entry in entries if (number := shard_number(entry.name)) is not None)
        manifest = ShardManifest(name, 0, settings, entries, following, checked_roots(roots or {}))
        lock.check()
        with write_errors(folder):
            writer = cls(folder, lock, write_manifest(folder, manifest), manifest)
            for shard in staged:
                shard.close()
            writer._open_shards()
            writer._sweep()
        return writer

    @in_turn
    def adopt(
        self, staged: Sequence[StagedShard], delete: Collection[str] = (), roots: Mapping[str, str] | None = None
    ) -> None:
        """Put shards that were filled in the gallery's folder behind the others, and remove rows, all in one commit.

        Args:
            staged: in the order of their rows, of the gallery's settings; numbers from `next_shard` on. They are
                closed.
            delete: ids of rows that go, such as those that rows of the new shards replace.
            roots: what `roots` becomes; None leaves it.

        Raises:
            InputError: an id of a new row would be there twice, or one of `delete` is not there.
            GalleryError: it cannot be written; nothing was changed.
        """
        gone = sorted(set(delete))
        known = [shard.find(gone) for shard in self._folders]
        check_known(gone, set().union(*known), "delete")
        twice = sorted(set().union(*(self.ids(row.id for row in shard.rows()) for shard in staged)).difference(gone))
        if twice:
            raise InputError(f"ids: already in the gallery: {', '.join(twice[:5])}")
        entries = tuple(shard.entry for shard in staged)
        numbers = [shard_number(entry.name) or 0 for entry in entries]
        kept = self.roots if roots is None else checked_roots(roots)
        if not staged and not gone and kept == self.roots:
            self._sweep()
            return
        following = max([self._manifest.next_shard, *(number + 1 for number in numbers)])
        with self._change(entries, roots=kept, next_shard=following):
            for shard, places in zip(self._folders, known, strict=True):
                shard.remove(places.values())
        with write_errors(self.path):
            for new, entry in zip(staged, entries, strict=True):
                new.close()
                shard = ShardWriter.open_shard(self.path / entry.name, entry, self.settings)
                self._folders = (*self._folders, shard)
            self._sweep()

    @property
    def next_shard(self) -> int:
        """The number of the next new shard; no commit has named a shard of this number or a higher one."""
        return self._manifest.next_shard

    @property
    def gallery(self) -> str:
        """32 hex digits that tell the gallery from every other one."""
        return self._manifest.gallery

    @property
    def _newest(self) -> ShardManifest:
        return self._manifest

    def describe(self) -> str:
        """Rows, shards and bytes in words."""
        size = sum(file.length for shard in self._folders for file in shard.catalogue.files.values())
        rows = counted(len(self), self.settings.kind.removesuffix("s"))
        shards = describe_shards([shard.catalogue.count for shard in self._folders])
        return f"{rows} in {shards}, {size / 1e6:.1f} MB"

    @in_turn
    def rebalance(self, shards: int, *, progress: Progress | None = None) -> None:
        """Cut the rows into this many shards of the same number of rows, in one commit; their order stays.

        Whole files are taken over; the rows at the edges of shards are written again, and so are small segments. Needs
        room on the disk for those, or for all of the gallery where the disk has no hard links.

        Args:
            shards: how many.
            progress: called with the rows that are done, and all rows.

        Raises:
            InputError: there are fewer rows than shards.
            GalleryCorrupt: a segment that must be rewritten is damaged; nothing was changed.
            GalleryError: the disk is full or cannot be written; nothing was changed.
        """
        self._catch_up()
        sources = [Source(shard.path, shard.catalogue) for shard in self._folders]
        first = self._manifest.next_shard
        old, made = self._folders, shard_folders(self.path, first, shards, sources)
        try:
            with write_errors(self.path, "; nothing of this change was kept"):
                entries = write_shards(sources, made, progress=progress)
                self._publish(shards=tuple(entries), next_shard=first + shards)
        finally:
            named = {shard.name for shard in self._named()}
            for folder in made:
                if folder.name not in named:
                    shutil.rmtree(folder, ignore_errors=True)
        for shard in old:
            shard.close()
            shutil.rmtree(shard.path, ignore_errors=True)
        with write_errors(self.path):
            self._open_shards()

    @contextmanager
    def changing(self) -> Iterator[Sequence[ShardWriter]]:
        """The shards, for a block whose changes become one commit: at most one change of each shard."""
        with self.turn, self._change():
            yield self._folders

    # -- pieces

    def _open_shards(self) -> None:
        with ExitStack() as opened:
            shards = []
            for entry in self._manifest.shards:
                shards.append(ShardWriter.open_shard(self.path / entry.name, entry, self.settings))
                opened.callback(shards[-1].close)
            self._folders = shards
            opened.pop_all()

    def _named(self) -> tuple[ShardEntry, ...]:
        """The shards of the newest commit, from the disk: Ctrl-C may come after it and before this writer knows."""
        return read_manifest(self.path)[1].shards

    def _sweep(self) -> None:
        """Remove the shards that no commit names."""
        named = {shard.name for shard in self._manifest.shards}
        for entry in os.scandir(self.path):
            if shard_number(entry.name) is not None and entry.name not in named and entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)

    @contextmanager
    def _change(self, new: Sequence[ShardEntry] = (), **changes: Any) -> Iterator[Mapping[str, Any]]:
        """What the shards stage in the block, and new shards, become one commit; if anything fails, none of it."""
        self._catch_up()
        try:
            yield {}
            entries = (*(shard.entry for shard in self._folders), *new)
            if changes or entries != self._manifest.shards:
                with write_errors(self.path, "; nothing of this change was kept"):
                    self._publish(shards=entries, **changes)
        finally:
            named = self._named()
            for shard in self._folders:
                with write_errors(self.path, "; this change is in the gallery, and the next writer finishes it"):
                    shard.settle(named)

    def _catch_up(self) -> None:
        """Finish a change of this writer's own that was interrupted, as far as it can be.

        Raises:
            GalleryError: other shards make up the gallery since then.
        """
        self._lock.check()
        if self._moving is not None:
            header = self._moving.to_bytes()[0]
            if manifest_header(self.path) == header:
                self._header, self._manifest = header, self._moving
            self._moving = None
        if [shard.path.name for shard in self._folders] != [entry.name for entry in self._manifest.shards]:
            raise GalleryError(f"{self.path}: a change of its shards was interrupted; open it again")
        for shard in self._folders:
            with write_errors(self.path):
                shard.settle(self._manifest.shards)

    def _publish(self, **changes: Any) -> None:
        """Make the next manifest the newest commit."""
        self._lock.check()
        if manifest_header(self.path) != self._header:
            raise GalleryLocked(f"{self.path} was changed or replaced by another process; open it again")
        following = replace(self._manifest, generation=self._manifest.generation + 1, **changes)
        header, self._moving = following.to_bytes()[0], following
        try:
            write_manifest(self.path, following)
        except OSError as error:
            if manifest_header(self.path) == header:
                raise GalleryError(
                    f"{self.path}: this change is in the gallery, but the disk did not confirm it ({error.strerror}): "
                    "a power cut could undo it"
                ) from error
            raise
        finally:
            if manifest_header(self.path) == header:
                self._header, self._manifest = header, following
            self._moving = None
        _log.debug("%s: committed generation %d", self.path / MANIFEST, following.generation)
