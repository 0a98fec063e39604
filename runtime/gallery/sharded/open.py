"""Opening any gallery for writing."""

from __future__ import annotations

from pathlib import Path

from ..row_writer import RowWriter
from ..writer import GalleryWriter
from .manifest import is_sharded
from .writer import ShardedWriter


def open_for_writing(path: str | Path) -> RowWriter:
    """Open the gallery in a folder for writing, whether it is in shards or not.

    Raises:
        GalleryLocked, GalleryError, GalleryCorrupt: as `GalleryWriter.open` and `ShardedWriter.open`.
    """
    return ShardedWriter.open(path) if is_sharded(Path(path)) else GalleryWriter.open(path)
