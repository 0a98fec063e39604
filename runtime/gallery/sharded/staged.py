"""Shards that are filled before a manifest names them, by any process that reaches the gallery's folder.

Their newest commit lies in `catalogue.next`, so nothing opens them as galleries. `ShardedWriter.adopt` and `create`
make them part of a gallery, all in one commit; what no manifest names by then is removed by the next writer.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Self

from ...errors import GalleryError
from ..folder_writer import FolderWriter
from ..settings import GallerySettings
from ..store.catalogue import CATALOGUE, Catalogue, read_catalogue
from ..store.commit import publish, sweep
from ..store.files import SEGMENTS
from ..store.header import Header
from ..store.lock import LOCK, lock_to_open
from ..store.refusals import write_errors
from ..writer import GalleryWriter
from .manifest import NEXT, ShardEntry, shard_number


class StagedShard(GalleryWriter):
    """The one writer of a shard that no manifest names yet."""

    @property
    def entry(self) -> ShardEntry:
        """What a manifest will say of it."""
        return self._folders[0].entry

    @classmethod
    def open_staged(cls, folder: Path, settings: GallerySettings, gallery: str) -> Self:
        """Open the shard in a folder as its last commit left it; make it where there is none, or another.

        Args:
            folder: of the shard.
            settings: of its gallery.
            gallery: 32 hex digits that tell the shard from others. The files of two shards that are filled in the same
                way under the same digits are the same to the byte.

        Raises:
            GalleryLocked: another process fills it.
            GalleryError: it cannot be written, or a manifest may name it.
        """
        with lock_to_open(folder, make=True) as lock:
            if os.path.lexists(folder / CATALOGUE):
                raise GalleryError(f"{folder} is a gallery, not a shard that is being filled; choose another folder")
            with write_errors(folder):
                found = _last_commit(folder, settings, gallery)
                if found is None:
                    _clear(folder)
                    (folder / SEGMENTS).mkdir()
                    catalogue = Catalogue(gallery, 0, settings)
                    found = publish(folder, catalogue, None, NEXT), catalogue
                header, catalogue = found
                sweep(folder, catalogue, catalogue.files)
            return cls(FolderWriter(folder, lock, header, catalogue, NEXT))


def staged_rows(folder: Path) -> int:
    """How many rows the shard in a folder has, which another process may be filling; 0 where it cannot be read."""
    try:
        return read_catalogue(folder, NEXT)[1].count
    except GalleryError:
        return 0


def check_only_staged(folder: Path) -> None:
    """GalleryError unless a folder without a gallery holds nothing but what an interrupted run left there."""
    for entry in list(os.scandir(folder)):
        if entry.name == LOCK or entry.name.startswith("."):
            continue
        if shard_number(entry.name) is None or os.path.lexists(Path(entry.path, CATALOGUE)):
            raise GalleryError(f"{folder} already exists and is not empty; choose another folder, or add to it")


def _last_commit(folder: Path, settings: GallerySettings, gallery: str) -> tuple[Header, Catalogue] | None:
    """The newest commit of a shard, if all its files are there and it is the one that is meant."""
    try:
        header, catalogue = read_catalogue(folder, NEXT)
        whole = all(os.stat(folder / SEGMENTS / f.name).st_size == f.length for f in catalogue.files.values())
    except (GalleryError, FileNotFoundError):
        return None
    return (header, catalogue) if whole and header.gallery == gallery and catalogue.settings == settings else None


def _clear(folder: Path) -> None:
    for entry in list(os.scandir(folder)):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        elif entry.name != LOCK:
            os.unlink(entry.path)
