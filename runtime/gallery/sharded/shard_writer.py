"""The writer of one shard of a gallery: what it commits is staged until the manifest names it."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

from ...errors import GalleryCorrupt, quoted
from ...files import sync
from ..folder_writer import FolderWriter
from ..settings import GallerySettings
from ..store.catalogue import CATALOGUE, Catalogue, permissions, read_header
from ..store.commit import publish, sweep
from ..store.files import SEGMENTS
from ..store.header import Header
from ..store.lock import lock_to_open
from ..store.mapping import check_folder
from .manifest import NEXT, ShardEntry, check_shard, read_pinned


class ShardWriter(FolderWriter):
    """Changes one shard. A change ends with `settle`."""

    _before: tuple[Header, Catalogue] | None = None  # the commit before the staged one

    @classmethod
    def open_shard(cls, folder: Path, entry: ShardEntry, settings: GallerySettings) -> Self:
        """Open the shard that a manifest names, and finish or remove what an interrupted change left there.

        Raises:
            GalleryLocked: another writer has it open.
            GalleryCorrupt: it is missing, or not the commit that the manifest names.
            OSError: it cannot be written.
        """
        segments = folder / SEGMENTS
        for needed, there in ((folder, folder.is_dir()), (segments, os.path.lexists(segments))):
            if not there:
                instead = f"take it out with: chan gallery repair {quoted(folder.parent)} --give-up-missing"
                raise GalleryCorrupt(
                    f"{needed} is missing: the gallery is incomplete; restore the shard from a copy, or {instead}"
                )
        with lock_to_open(folder) as lock:
            try:
                header, catalogue = read_pinned(folder, entry.header)
            except FileNotFoundError as error:
                raise GalleryCorrupt(f"{folder} is not of the generation that its gallery's manifest names") from error
            check_shard(folder, catalogue, entry, settings)
            check_folder(segments)
            if not _is_current(folder, header):
                os.replace(folder / NEXT, folder / CATALOGUE)
                sync(folder)
            (folder / NEXT).unlink(missing_ok=True)
            sweep(folder, catalogue, catalogue.files)
            return cls(folder, lock, header, catalogue)

    def settle(self, named: Collection[ShardEntry]) -> None:
        """End a change: what was staged takes its place where the manifest names it, and else is taken back.

        Raises:
            OSError: the disk refuses; readers see the change all the same, and the next writer finishes it.
        """
        if self._before is None:
            return
        if self.header != self._before[0] and self.entry in named:
            if not _is_current(self.path, self.header):  # else Ctrl-C came here before
                os.replace(self.path / NEXT, self.path / CATALOGUE)
            sync(self.path)
            self._before = None
            super()._remove_dropped()
            return
        (self.header, self.catalogue), self._before = self._before, None
        self._tables.clear()
        with suppress(OSError):
            (self.path / NEXT).unlink(missing_ok=True)
            sweep(self.path, self.catalogue, self.catalogue.files)

    def _publish(self, following: Catalogue) -> Header:
        self._before = self.header, replace(self.catalogue, dropped=())
        return publish(self.path, following, permissions(self.path / CATALOGUE), NEXT)

    def _remove_dropped(self) -> None:
        """Nothing is removed before the manifest names the change."""


def _is_current(folder: Path, header: Header) -> bool:
    return os.path.lexists(folder / CATALOGUE) and read_header(folder) == header
