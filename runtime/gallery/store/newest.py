"""The newest commit in a folder, of whatever schema this version reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ...errors import GalleryError
from .catalogue import CATALOGUE, OLD_CATALOGUE, Catalogue, no_gallery, read_catalogue, read_header
from .header import Header
from .old import OLD, old_header, read_old
from .rows import RowTable


def is_old(folder: Path) -> bool:
    """Whether the gallery in a folder has not been upgraded to this version's schema."""
    return not os.path.lexists(folder / CATALOGUE) and os.path.lexists(folder / OLD_CATALOGUE)


def newest_header(folder: Path) -> Header:
    """What tells the newest commit from all others; raises as `read_header` does."""
    try:
        return read_header(folder)
    except GalleryError:
        if is_old(folder):
            return old_header(folder)
        raise


def read_newest(folder: Path) -> tuple[Header, Catalogue, Sequence[RowTable] | None]:
    """The newest commit, and the rows of each segment where they do not lie in files.

    Raises:
        GalleryError: there is no gallery, it cannot be read, or this version does not know its schema.
        GalleryCorrupt: the bytes are not those that were committed.
    """
    return read_old(folder) if is_old(folder) else (*read_catalogue(folder), None)


def is_same_gallery(before: Header, now: Header) -> bool:
    """Whether two commits can be of one gallery; an upgrade gives an old one a name."""
    return before.gallery in (now.gallery, OLD)


__all__ = ["is_old", "is_same_gallery", "newest_header", "no_gallery", "read_newest"]
