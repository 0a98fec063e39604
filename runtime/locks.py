"""One process at a time in a folder: a lock file that is there only while it is held.

A process that is killed may leave the file; the lock ends with the process, and the next one takes the file over.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError
from .files import missing_folders, remove_empty

_ATTEMPTS = 100  # to lock a file that others remove


@contextmanager
def only_one(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock file PATH while the block runs, or raise at once.

    Folders above PATH are created where they are missing. Those are removed again if nothing else is in them at the
    end. Where the system or the disk has no locks, nothing is held.

    Raises:
        InputError: another process holds it; `busy` is the message.
        OSError: the folder cannot be written.
    """
    made = missing_folders(path.parent)
    try:
        descriptor = _take(path, busy)
    except BaseException:
        remove_empty(made)
        raise
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # while it is held, so that nobody's file but our own is removed
        remove_empty(made)
        os.close(descriptor)


def _take(path: Path, busy: str) -> int:
    """Open and lock the file; the descriptor holds the lock."""
    for _ in range(_ATTEMPTS):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        except FileNotFoundError:
            continue  # whoever held the lock has removed the folder
        try:
            _lock(descriptor)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(descriptor)
                raise InputError(busy) from error
            return descriptor  # a disk without locks
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # whoever held the lock has removed the file
    raise InputError(busy)


def _lock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
