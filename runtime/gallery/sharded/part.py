"""One shard of a gallery at the commit that a manifest names, for whoever searches shards in several processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from ..gallery import Gallery
from ..scanner import Scanner
from ..store.rows import Row
from ..view import View, newest_settings, pinned_view
from ..where import Filter
from .manifest import ShardEntry


class ShardPart(Gallery):
    """A shard that is open for reading at one commit and stays at it, whatever is committed meanwhile.

    It has the methods of `Gallery`, which see the rows of this shard alone. `close` leaves the scanner open, which the
    parts of one gallery share.
    """

    def __init__(self, folder: Path, scanner: Scanner, view: View) -> None:
        super().__init__(folder, scanner, "refuse")
        self._view_of_part = view

    @classmethod
    def open_at(cls, folder: Path, entry: ShardEntry, scanner: Scanner, before: ShardPart | None) -> Self:
        """Open the shard of an entry.

        Args:
            folder: the gallery in shards.
            entry: the shard and its commit, as the manifest names them.
            scanner: of the gallery; it must stay open as long as the part is used.
            before: the shard at another commit; what that has mapped is taken over.

        Raises:
            FileNotFoundError: the shard does not have that commit, any more or yet, or is missing.
            GalleryError: it cannot be read, or another version wrote it.
            GalleryCorrupt: a file of it is damaged.
        """
        old = None if before is None else before._view_of_part
        return cls(folder, scanner, pinned_view(folder, entry, scanner.settings, old, scanner.ranker))

    def close(self) -> None:
        """Let the files go; twice does no harm."""
        self._closed = True

    def keys(self, condition: Filter) -> frozenset[str] | None:
        """The metadata keys of the rows that a filter looks at; None where the shard has no rows."""
        (snapshot,) = self._view_of_part.opened
        mask, keys = snapshot.passing(condition)
        return frozenset(keys) if len(mask) else None

    def find_some(self, ids: Sequence[str]) -> dict[str, Row]:
        """The rows of those ids that the shard has."""
        (snapshot,) = self._view_of_part.opened
        return {id: snapshot.row(row) for id, row in snapshot.find(ids).items()}

    def _view(self) -> View:
        self._check_open()
        return self._view_of_part


def open_scanner(folder: Path, threads: int | None) -> Scanner:
    """What searches the shards of the gallery in a folder on the CPU, as `Gallery.open` chooses it.

    Raises:
        GalleryError: there is no gallery.
        GalleryCorrupt: its manifest is damaged.
    """
    return Scanner.open(folder, newest_settings(folder), "auto", threads, "cpu", "int8")
