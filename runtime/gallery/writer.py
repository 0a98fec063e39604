"""Changes to a gallery in one folder: one writer at a time, beside any number of readers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

from ..contract import AlignmentConfig
from ..errors import GalleryError, InputError
from .folder_writer import FolderWriter
from .row_writer import RowWriter
from .settings import NO_MODEL, GallerySettings, Kind, Precision
from .sharded.manifest import in_shards, is_shard, is_sharded
from .store.catalogue import CATALOGUE, SCHEMA, Catalogue, permissions, read_catalogue
from .store.commit import publish, sweep
from .store.create import create_gallery, undo_creation
from .store.files import SEGMENTS
from .store.lock import lock_to_open
from .store.mapping import check_folder
from .store.newest import is_old, no_gallery
from .store.old import old_files, upgrade
from .store.refusals import write_errors


class GalleryWriter(RowWriter):
    """The one writer of a gallery; a context manager that gives the lock back.

    `GalleryWriter.open(path)` opens an existing gallery and `GalleryWriter.create(path, ...)` makes a new one; the
    constructor takes what they have opened.

    Attributes:
        path: the gallery's folder, absolute.
    """

    def __init__(self, folder: FolderWriter) -> None:
        super().__init__(folder.path, folder.lock)
        self._folders = (folder,)
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
            return cls(FolderWriter(folder, lock, header, catalogue))

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
        writer = cls(FolderWriter(folder, lock, header, catalogue))
        writer._is_new = True
        return writer

    @property
    def _newest(self) -> Catalogue:
        return self._folders[0].catalogue

    def describe(self) -> str:
        """Rows, segments and bytes in words."""
        return self._newest.describe()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._is_new and not self._newest.segments:
            with suppress(GalleryError):
                self._lock.check()
                undo_creation(self.path, self._lock)
        self.close()

    @contextmanager
    def _change(self, **changes: Any) -> Iterator[Mapping[str, Any]]:
        """The folder's commit is the gallery's."""
        yield changes
