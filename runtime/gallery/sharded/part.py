"""One shard of a gallery at the commit that a manifest names, for whoever searches shards in several processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from ..gallery import PinnedGallery
from ..scanner import Scanner
from ..store.rows import Row
from ..view import newest_settings, pinned_view
from ..where import Filter
from .manifest import ShardEntry


class ShardPart(PinnedGallery):
    """A shard that is open for reading at one commit.

    It has the methods of `Gallery`, which see the rows of this shard alone. The parts of one gallery share a scanner.
    """

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
        old = None if before is None else before._current
        return cls(folder, scanner, "refuse", pinned_view(folder, entry, scanner.settings, old, scanner.ranker))

    def keys(self, condition: Filter) -> frozenset[str] | None:
        """The metadata keys of the rows that a filter looks at; None where the shard has no rows."""
        (snapshot,) = self._current.opened
        mask, keys = snapshot.passing(condition)
        return frozenset(keys) if len(mask) else None

    def find_some(self, ids: Sequence[str]) -> dict[str, Row]:
        """The rows of those ids that the shard has."""
        (snapshot,) = self._current.opened
        return {id: snapshot.row(row) for id, row in snapshot.find(ids).items()}


def open_scanner(folder: Path, threads: int | None) -> Scanner:
    """What searches the shards of the gallery in a folder on the CPU, as `Gallery.open` chooses it.

    Raises:
        GalleryError: there is no gallery.
        GalleryCorrupt: its manifest is damaged.
    """
    return Scanner.open(folder, newest_settings(folder), "auto", threads, "cpu", "int8")
