"""The files of a gallery's newest commit, for whoever copies it elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import GalleryCorrupt, GalleryError, quoted
from ..settings import GallerySettings
from ..store.array_file import FileRecord
from ..store.catalogue import CATALOGUE, Catalogue
from ..store.files import MANIFEST, SEGMENTS
from ..store.header import Header
from ..store.newest import read_newest
from .manifest import is_sharded, read_manifest, read_pinned


@dataclass(frozen=True)
class Committed:
    """One commit of a gallery, in shards or not.

    Attributes:
        header: what tells it from others.
        settings: of the gallery.
        rows: that are not deleted.
        small: path below the gallery's folder -> bytes of a catalogue or the manifest.
        files: path below the gallery's folder -> what was committed of each other file.
    """

    header: Header
    settings: GallerySettings
    rows: int
    small: dict[str, bytes]
    files: dict[str, FileRecord]


def read_committed(folder: Path) -> Committed:
    """The newest commit of the gallery in a folder.

    Raises:
        GalleryError: there is no gallery, or an older version wrote it.
        GalleryCorrupt: its catalogue is damaged, or a shard is missing.
    """
    if not is_sharded(folder):
        header, catalogue, _ = read_newest(folder)
        small = {CATALOGUE: _bytes(folder, header, catalogue)}
        files = {f"{SEGMENTS}/{name}": record for name, record in catalogue.files.items()}
        return Committed(header, catalogue.settings, catalogue.count, small, files)
    header, manifest = read_manifest(folder)
    small, files = {MANIFEST: manifest.to_bytes()[1]}, {}
    for entry in manifest.shards:
        try:
            catalogue = read_pinned(folder / entry.name, entry.header)[1]
        except FileNotFoundError as error:
            raise GalleryCorrupt(f"{folder / entry.name} is missing, or changed while it was read") from error
        small[f"{entry.name}/{CATALOGUE}"] = _bytes(folder, entry.header, catalogue)
        files |= {f"{entry.name}/{SEGMENTS}/{name}": record for name, record in catalogue.files.items()}
    return Committed(header, manifest.settings, sum(entry.rows for entry in manifest.shards), small, files)


def _bytes(folder: Path, header: Header, catalogue: Catalogue) -> bytes:
    found, data = catalogue.to_bytes()
    if found != header:
        raise GalleryError(
            f"{folder} was written by an older version; upgrade it first with: chan gallery compact {quoted(folder)}"
        )
    return data
