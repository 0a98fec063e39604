"""Files and folders that appear under their names only when they are complete: write beside, then move.

A reader sees the old content or the new content, never a part of either, and what was written is on the disk before
it takes its name, so that a power cut cannot leave an empty file behind. An error or Ctrl-C removes what was written
and leaves the old content. A process that is killed may leave a hidden `.NAME.*` beside the target, which nothing
reads and which can be deleted.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_file(path: str | Path, data: bytes | str) -> None:
    """Write a whole file; text is encoded as UTF-8 with its line breaks unchanged. See `atomic_file`."""
    with atomic_file(path) as beside:
        beside.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A path beside PATH, with the same suffix, for the block to write; the file then replaces PATH.

    Folders above PATH are created where they are missing.

    Raises:
        OSError: the disk is full, the folder is read-only, ...; the error names PATH, and PATH is as it was.
    """
    path = Path(path)
    beside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        publish(beside, path)
    except OSError as error:
        if error.filename is not None and Path(os.fsdecode(error.filename)) == beside:
            error.filename = str(path)
        raise
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A new, empty folder beside PATH for the block to fill; it then replaces what is at PATH.

    Folders above PATH are created where they are missing. Whether what lies at PATH may be replaced is for the caller
    to check.

    Raises:
        OSError: the disk is full, the folder is read-only, ...; PATH is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        fresh = Path(scratch, "new")
        fresh.mkdir()
        yield fresh
        publish(fresh, path)


def publish(finished: Path, path: Path) -> None:
    """Move a finished file or folder to PATH, on the same file system, durably: first its bytes, then its name.

    A folder replaces another by two renames: a process killed between them leaves the old one in `.NAME.*/old`.
    """
    sync_tree(finished)
    if finished.is_dir() and path.exists():
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            old = Path(scratch, "old")
            os.replace(path, old)
            try:
                os.replace(finished, path)
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                os.replace(old, path)
                raise
    else:
        os.replace(finished, path)
    sync(path.parent)


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
