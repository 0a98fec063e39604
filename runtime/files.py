"""Files and folders that appear under their names only when they are complete: write beside, then move.

A reader sees the old content or the new content, never a part of either, and what was written is on the disk before
it takes its name, so that a power cut cannot leave an empty file behind. An error or Ctrl-C removes what was written
and leaves the old content. A process that is killed may leave a hidden `.NAME.*` beside the target. It can be deleted
once the target is there; only `recover` reads it.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux' renameat2
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ZEROS = 1 << 20  # bytes written at once where a file cannot be given its room


def write_file(path: str | Path, data: bytes | str) -> None:
    """Write a whole file; text is encoded as UTF-8 with its line breaks unchanged. See `atomic_file`."""
    with atomic_file(path) as beside:
        beside.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A path beside PATH, with the same suffix, for the block to write; the file then replaces PATH.

    Folders above PATH are created where they are missing, and after an error are gone again. A device, a pipe or a
    stream of the process (/dev/stdout) is not replaced: it gets the file's bytes.

    Raises:
        OSError: the disk is full, the folder is read-only, ...; the error names PATH, and PATH is as it was.
    """
    path = Path(path)
    if is_device(path):
        with tempfile.TemporaryDirectory() as scratch, naming(path):
            elsewhere = Path(scratch, f"file{path.suffix}")
            yield elsewhere
            with open(elsewhere, "rb") as source, open(path, "wb") as out:
                shutil.copyfileobj(source, out)
        return
    beside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}")
    with new_folders(path.parent), naming(path, beside):
        try:
            yield beside
            publish(beside, path)
        finally:
            beside.unlink(missing_ok=True)


def is_utf8(path: str | Path) -> bool:
    """Whether a path is text in UTF-8, as many libraries and all texts need it; a file's name may be any bytes."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def is_device(path: Path) -> bool:
    """Whether a path leads to something that is no file or folder, or is one of the process's open files."""
    if re.match("/dev/(fd/|std)|/proc/", os.path.abspath(path)):
        return path.exists()
    return path.exists() and not path.is_file() and not path.is_dir()


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A new, empty folder beside PATH for the block to fill; it then replaces what was at PATH before the block.

    Folders above PATH are created where they are missing. Whether what lies at PATH may be replaced is for the caller
    to check. Where PATH is a link it stays one, and the folder that it leads to is written.

    Raises:
        OSError: the disk is full, the folder is read-only, ...; PATH held nothing, and another process has written to
            it meanwhile. The error names PATH or what is to be in it, and PATH is as it was.
    """
    path = Path(path)
    if path.is_symlink():  # or the link would go, and the folder would be on another disk than was meant
        path = Path(os.path.realpath(path))
    recover(path)
    taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    with (
        new_folders(path.parent),
        tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch,
    ):
        fresh = Path(scratch, "new")
        with naming(path, fresh):
            fresh.mkdir()
            yield fresh
            publish(fresh, path, new=not taken)


@contextmanager
def new_folders(path: Path) -> Iterator[None]:
    """Make a folder and those above it for the block to write to; after an error, those made that are empty go."""
    made = missing_folders(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        remove_empty(made)
        raise


def missing_folders(path: Path) -> list[Path]:
    """A folder and those above it that are not there, the innermost first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, the innermost first, but for those that something is in."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def naming(path: Path, beside: Path | None = None) -> Iterator[None]:
    """Let an error of writing in the block name PATH, or what is in it, also where it is written BESIDE first.

    The system's error of a full disk has no name where an open file was written, and Python's of a copy has the
    source's first.
    """
    try:
        yield
    except OSError as error:
        _name_place(error, path if beside is None else beside, path)
        raise


def _name_place(error: OSError, beside: Path, path: Path) -> None:
    if error.errno is None and re.fullmatch(r"\d+ requested and \d+ written", str(error)):  # numpy's
        error.errno, error.strerror = errno.ENOSPC, os.strerror(errno.ENOSPC)
    for name in (error.filename2, error.filename):
        if isinstance(name, str | bytes) and (place := Path(os.fsdecode(name))).is_relative_to(beside):
            if error.filename2 is not None:
                del error.filename2  # None would be shown as a name
            error.filename = str(path / place.relative_to(beside))
            return
    if error.filename is None and error.errno in _FULL:
        error.filename = str(path)


def publish(finished: Path, path: Path, *, new: bool = False) -> None:
    """Move a finished file or folder to PATH, on the same file system, durably: first its bytes, then its name.

    Where nothing is at PATH, or with `new`, it is moved there: the system refuses that where a folder holds something.

    A folder and the one it replaces change places at once, so that PATH is never without a folder, and the old one is
    then removed. Where the system cannot do that, two renames do it: a process killed between them leaves the old
    folder in `.NAME.*/old`, and `recover` brings it back.
    """
    sync_tree(finished)
    if new and os.name == "nt":  # which moves no folder onto an empty one
        with suppress(OSError):
            path.rmdir()
    if new or not finished.is_dir() or not path.exists():
        os.replace(finished, path)
    elif exchange(finished, path):
        shutil.rmtree(finished, ignore_errors=True)
    else:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch, locked(Path(scratch)):
            old = Path(scratch, "old")
            try:
                os.replace(path, old)
                os.replace(finished, path)
            except BaseException:
                if old.exists():
                    shutil.rmtree(path, ignore_errors=True)
                    os.replace(old, path)
                raise
    sync(path.parent)


def exchange(first: Path, second: Path) -> bool:
    """Let two paths of one file system change places in one step; False where the system or the disk cannot."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "renameat2"):
        return False
    here = ctypes.c_int(_AT_FDCWD)
    if libc.renameat2(here, os.fsencode(first), here, os.fsencode(second), ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(second))


def recover(path: Path) -> None:
    """Bring back the folder that a process killed in `publish` has left beside PATH, where PATH is missing.

    A process that is alive holds a lock while PATH is missing, and is waited for.
    """
    if path.exists():
        return
    for old in sorted(path.parent.glob(f".{glob.escape(path.name)}.*/old")):
        with locked(old.parent):
            if not path.exists() and old.is_dir():
                os.replace(old, path)
                sync(path.parent)
        shutil.rmtree(old.parent, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock of a folder; no lock where the system or the disk has none, or the folder is gone."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, durable."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders, and keeps their entries in order itself
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Make a file, or a folder with everything in it, durable."""
    for inner, _, names in os.walk(path):
        for name in names:
            sync(Path(inner, name))
        sync(Path(inner))
    if path.is_file():
        sync(path)


def reserve(path: Path, size: int) -> None:
    """Make a file that long on the disk itself.

    Writing to a map of a file that is only long by its name ends the process with SIGBUS once the disk is full.

    Raises:
        OSError: the disk has no room for it; the error names PATH.
    """
    with path.open("ab") as file:
        try:
            missing = size - file.seek(0, os.SEEK_END)
            if missing > 0 and not _allocated(file.fileno(), size):
                while missing > 0:
                    missing -= file.write(bytes(min(missing, _ZEROS)))
                file.flush()
        except OSError as error:
            error.filename = str(path)
            raise


def _allocated(descriptor: int, size: int) -> bool:
    """Let the system give a file its room; False where the system or the disk cannot."""
    if not hasattr(os, "posix_fallocate"):
        return False
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            return False
        raise
    return True
