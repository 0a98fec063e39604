"""Making a gallery."""

from __future__ import annotations

import uuid
from contextlib import suppress
from pathlib import Path

from ...errors import GalleryError
from ...files import sync
from ..settings import GallerySettings
from .catalogue import CATALOGUE, OLD_CATALOGUE, Catalogue, is_gallery
from .commit import NEW, publish
from .files import SEGMENTS
from .header import Header
from .lock import LOCK, WriterLock, lock_to_open
from .mapping import check_folder

# What an interrupted creation leaves, by this version or the one of schema 2.
_OLD_NEW = [f"{OLD_CATALOGUE}.new{suffix}" for suffix in ("", "-wal", "-shm", "-journal")]
_LEFT = {SEGMENTS, LOCK, NEW, *_OLD_NEW}
_OF_THE_DISK = {"lost+found", "@eaDir"}  # that file systems and servers put into an empty folder


def create_gallery(folder: Path, settings: GallerySettings) -> tuple[WriterLock, Header, Catalogue]:
    """Make an empty gallery in a folder, which must not exist yet or hold nothing that could be someone's.

    Interrupted at any point, it can be called again.

    Raises:
        GalleryError: something is already there.
        GalleryLocked: another process is making a gallery there.
        OSError: it cannot be written.
    """
    if folder.exists():
        _check_empty(folder)
    with lock_to_open(folder, make=True) as lock:
        _check_empty(folder)  # again: whoever held the lock may have made one
        try:
            for name in _OLD_NEW:
                (folder / name).unlink(missing_ok=True)
            (folder / SEGMENTS).mkdir(exist_ok=True)
            catalogue = Catalogue(uuid.uuid4().hex, 0, settings)
            header = publish(folder, catalogue, None)
            for path in lock.made:
                sync(path.parent)
        except BaseException:
            undo_creation(folder, lock)
            raise
        return lock, header, catalogue


def undo_creation(folder: Path, lock: WriterLock) -> None:
    """Remove the gallery without rows that was made in a folder, or what there is of it, and give the lock back."""
    with suppress(OSError):
        for name in (CATALOGUE, NEW):
            (folder / name).unlink(missing_ok=True)
        (folder / SEGMENTS).rmdir()
    lock.discard()


def _check_empty(folder: Path) -> None:
    names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")} - _OF_THE_DISK
    inside = False
    if SEGMENTS in names:
        check_folder(folder / SEGMENTS)
        inside = any(not entry.name.startswith(".") for entry in (folder / SEGMENTS).iterdir())
    if names - _LEFT or inside or is_gallery(folder):
        raise GalleryError(f"{folder} already exists and is not empty; choose another folder, or add to it")
