"""The lock of a gallery's one writer."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from ...errors import GalleryError, GalleryLocked

LOCK = "writer.lock"


class WriterLock:
    """Holds GALLERY/writer.lock until `release`, or until the process ends.

    Raises:
        GalleryLocked: another process, or this one, is already writing.
        GalleryError: the folder cannot be written, or its file system has no locks.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / LOCK
        self._descriptor: int | None = None
        try:
            descriptor = self._open()
        except OSError as error:
            reason = "the lock is a link" if error.errno == errno.ELOOP else error.strerror
            raise GalleryError(f"{folder} cannot be written: {reason}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise GalleryLocked(f"{folder} is being written by another process; wait for it to end") from error
            raise GalleryError(
                f"{folder} cannot be written: its file system does not lock files ({error.strerror}), so two writers "
                "could not be kept apart; write the gallery on another file system and copy it"
            ) from error
        self._descriptor = descriptor

    def _open(self) -> int:
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | flags, 0o666)
        except PermissionError:
            if not os.access(self._folder, os.W_OK):
                raise
            return os.open(self._path, os.O_RDONLY | flags)  # another user's lock in a folder that both may write

    def check(self) -> None:
        """GalleryLocked unless the lock is still held and still the file at its place."""
        if self._descriptor is None:
            raise GalleryError(f"{self._folder}: this writer is closed; open another")
        try:
            held, found = os.fstat(self._descriptor), os.stat(self._path, follow_symlinks=False)
            same = (held.st_dev, held.st_ino) == (found.st_dev, found.st_ino)
        except OSError:
            same = False
        if not same:
            raise GalleryLocked(f"{self._path} was removed or replaced, so another process may write; open it again")

    def release(self) -> None:
        """Give the lock back; twice does no harm."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
