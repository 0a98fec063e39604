"""Making a gallery."""

from __future__ import annotations

import uuid
from pathlib import Path

from ...errors import GalleryError
from ...files import sync
from ..settings import GallerySettings
from .catalogue import OLD_CATALOGUE, Catalogue, is_gallery
from .commit import NEW, publish
from .files import SEGMENTS
from .header import Header
from .lock import LOCK, WriterLock
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
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    _check_empty(folder)
    lock = WriterLock(folder)
    try:
        _check_empty(folder)  # again: whoever held the lock may have made one
        for name in _OLD_NEW:
            (folder / name).unlink(missing_ok=True)
        (folder / SEGMENTS).mkdir(exist_ok=True)
        catalogue = Catalogue(uuid.uuid4().hex, 0, settings)
        header = publish(folder, catalogue, None)
        for path in made:
            sync(path.parent)
        return lock, header, catalogue
    except BaseException:
        lock.release()
        raise


def _check_empty(folder: Path) -> None:
    names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")} - _OF_THE_DISK
    inside = False
    if SEGMENTS in names:
        check_folder(folder / SEGMENTS)
        inside = any(not entry.name.startswith(".") for entry in (folder / SEGMENTS).iterdir())
    if names - _LEFT or inside or is_gallery(folder):
        raise GalleryError(f"{folder} already exists and is not empty; choose another folder, or add to it")
