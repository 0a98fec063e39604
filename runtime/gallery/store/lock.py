"""The lock of a gallery's one writer."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...errors import GalleryError, GalleryLocked
from ...files import missing_folders, remove_empty

LOCK = "writer.lock"
_ATTEMPTS = 100  # to lock a file that others remove


@contextmanager
def lock_to_open(folder: Path, *, make: bool = False) -> Iterator[WriterLock]:
    """The lock of a folder that a block opens for writing; it is given back if the block fails, and else stays held."""
    lock = WriterLock(folder, make=make)
    try:
        yield lock
    except BaseException:
        lock.release()
        raise


class WriterLock:
    """Holds GALLERY/writer.lock until `release`, until nobody refers to it any more, or until the process ends.

    Args:
        folder: the gallery.
        make: make the folder where there is none.

    Raises:
        GalleryLocked: another process, or this one, is already writing.
        GalleryError: the folder cannot be written, or its file system has no locks.
    """

    _descriptor: int | None = None

    def __init__(self, folder: Path, *, make: bool = False) -> None:
        self._folder = folder
        self._path = folder / LOCK
        self.made = missing_folders(folder) if make else []
        try:
            if make:
                folder.mkdir(parents=True, exist_ok=True)
            self._acquire()
        except BaseException as error:
            remove_empty(self.made)
            if not isinstance(error, OSError):
                raise
            reason = "the lock is a link" if error.errno == errno.ELOOP else error.strerror
            raise GalleryError(f"{folder} cannot be written: {reason}") from error

    def _acquire(self) -> None:
        for _ in range(_ATTEMPTS):
            self._descriptor = self._open()
            self._lock(self._descriptor)
            if self._is_in_place():
                return
            self.release()  # whoever held it has removed it
        raise GalleryLocked(f"{self._path} is removed or replaced all the time; try again")

    def _lock(self, descriptor: int) -> None:
        folder = self._folder
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise GalleryLocked(
                    f"{folder} is being written by another process, or by another writer of this one; wait for it to "
                    "end"
                ) from error
            raise GalleryError(
                f"{folder} cannot be written: its file system does not lock files ({error.strerror}), so two writers "
                "could not be kept apart; write the gallery on another file system and copy it"
            ) from error

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
        if not self._is_in_place():
            raise GalleryLocked(f"{self._path} was removed or replaced, so another process may write; open it again")

    def _is_in_place(self) -> bool:
        assert self._descriptor is not None
        try:
            held, found = os.fstat(self._descriptor), os.stat(self._path, follow_symlinks=False)
        except OSError:
            return False
        return (held.st_dev, held.st_ino) == (found.st_dev, found.st_ino)

    def discard(self) -> None:
        """Give the lock of a folder without a gallery back, and remove its file and the folders that it has made."""
        if self._descriptor is not None:
            with suppress(OSError):
                self._path.unlink()
            remove_empty(self.made)
        self.release()

    def __del__(self) -> None:
        """Give back what Ctrl-C has kept from a block that would have done so."""
        self.release()

    def release(self) -> None:
        """Give the lock back; twice does no harm."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
