"""Refusals of the system, as the package's own errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import GalleryCorrupt, GalleryError


@contextmanager
def write_errors(folder: Path, also: str = "") -> Iterator[None]:
    """The system's refusals as the package's own error."""
    try:
        yield
    except OSError as error:
        raise GalleryError(f"{folder} cannot be written: {error.strerror or error}{also}") from error


@contextmanager
def missing_files(folder: Path) -> Iterator[None]:
    """A file that is not there as damage: the writer holds the lock, so nobody may have removed it."""
    try:
        yield
    except FileNotFoundError as error:
        raise GalleryCorrupt(f"{error.filename} is missing: {folder} is incomplete") from error
