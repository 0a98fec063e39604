"""The manifest of a gallery in shards: `GALLERY/shards`, beside one folder for each shard.

Each shard is an ordinary gallery. The manifest names one commit of each, by the digest of its catalogue, so the shards
change together: a commit writes its new files, then the next catalogue of each shard it changes as
`SHARD/catalogue.next`, then the next manifest beside the old one, and moves that into place. Before that move nothing
of the commit exists, and after it everything does. Then each `catalogue.next` takes the place of its `catalogue`; a
reader who comes earlier finds the commit it looks for under the one name or the other.

The rows are those of the first shard, then those of the second, and so on: that is their order, which decides ties.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...counts import counted
from ...errors import ChanError, GalleryCorrupt, GalleryError, quoted
from ...files import atomic_file
from ..settings import GallerySettings
from ..store.array_file import MAX_LENGTH
from ..store.catalogue import (
    CATALOGUE,
    MAX_ROWS,
    SCHEMA,
    Catalogue,
    check_roots,
    corrupt,
    is_gallery,
    no_gallery,
    permissions,
    read_catalogue,
    read_head,
)
from ..store.files import MANIFEST
from ..store.header import LINE, Header, line_of, parse_line, text_of, with_line
from ..store.json_values import json_integer, json_list, json_object, plain_json

NEXT = f"{CATALOGUE}.next"  # a shard's catalogue from before its manifest names it until it takes its place
MANIFEST_SCHEMA = 1
_WORD = "chan-shards"  # that the file begins with
_MAX_MANIFEST = 1 << 26
_MAX_SHARDS = 1 << 16
_SHARD = re.compile(r"shard-\d{6,18}")
_HEX = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class ShardEntry:
    """One shard.

    Attributes:
        name: its folder.
        header: of the commit that is part of the gallery.
        rows: of that commit, deleted ones left out.
    """

    name: str
    header: Header
    rows: int


@dataclass(frozen=True)
class ShardManifest:
    """One commit of a gallery in shards.

    Attributes:
        gallery: 32 hex digits that tell it from every other gallery.
        generation: how many commits went before.
        settings: what was fixed when it was made; every shard has the same, but for the place of the bundle.
        shards: in the order of their rows.
        next_shard: the number of the next shard; no commit has named a shard of this number or a higher one.
        roots: name -> folder of the roots that rows were indexed from (indexing/identity.py).
    """

    gallery: str
    generation: int
    settings: GallerySettings
    shards: tuple[ShardEntry, ...]
    next_shard: int
    roots: Mapping[str, str] = field(default_factory=dict)

    def to_bytes(self) -> tuple[Header, bytes]:
        """The file's bytes, and what its first line says."""
        body = {
            "settings": self.settings.to_dict(),
            "shards": [
                {
                    "name": shard.name,
                    "gallery": shard.header.gallery,
                    "generation": shard.header.generation,
                    "digest": shard.header.digest,
                    "rows": shard.rows,
                }
                for shard in self.shards
            ],
            "next_shard": self.next_shard,
            "roots": dict(self.roots),
        }
        text = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
        return with_line(_WORD, MANIFEST_SCHEMA, self.gallery, self.generation, text)


def is_sharded(folder: Path) -> bool:
    """Whether the gallery in a folder is one in shards."""
    return os.path.lexists(folder / MANIFEST)


def not_sharded(folder: Path) -> GalleryError:
    """The error of a folder that holds no gallery, or one that is not in shards."""
    if not is_gallery(folder):
        return no_gallery(folder)
    return GalleryError(
        f"{folder} is not a gallery in shards; make one with: chan gallery split {quoted(folder)} -o SHARDS"
    )


def is_shard(folder: Path) -> bool:
    """Whether a folder lies in a gallery in shards whose manifest names it."""
    if shard_number(folder.name) is None or not is_sharded(folder.parent):
        return False
    return folder.name in {shard.name for shard in read_manifest(folder.parent)[1].shards}


def in_shards(folder: Path) -> GalleryError:
    """The error of a gallery in shards where one in a single folder is needed."""
    return GalleryError(
        f"{folder} is a gallery in shards; open it with ShardedWriter, or merge it with: chan gallery merge"
    )


def shard_name(number: int) -> str:
    """The folder of the shard of a number."""
    return f"shard-{number:06}"


def shard_number(name: str) -> int | None:
    """The number of a shard's folder; None for every other name."""
    return int(name.partition("-")[2]) if _SHARD.fullmatch(name) else None


def manifest_header(folder: Path) -> Header:
    """What the newest commit's first line says.

    Raises:
        GalleryError: there is no manifest, it cannot be read, or this version does not know its schema.
        GalleryCorrupt: the line is not what was committed.
    """
    return _parse(folder, read_head(folder / MANIFEST, LINE))


def manifest_line(header: Header) -> bytes:
    """The first line of the manifest with this header, as it is written."""
    return line_of(_WORD, header)


def read_manifest(folder: Path) -> tuple[Header, ShardManifest]:
    """The newest commit.

    Raises:
        GalleryError: as of `manifest_header`.
        GalleryCorrupt: the bytes are not those that were committed, or break a rule of this module.
    """
    path = folder / MANIFEST
    data = read_head(path, _MAX_MANIFEST)
    header = _parse(folder, data[:LINE])
    try:
        return header, _manifest(header, plain_json(text_of(header, data)))
    except (ValueError, RecursionError, ChanError) as error:
        raise corrupt(path, str(error)) from error


def write_manifest(folder: Path, manifest: ShardManifest) -> Header:
    """Make a commit the newest one of the gallery in a folder, durably; raises OSError, and then it is not."""
    header, data = manifest.to_bytes()
    path = folder / MANIFEST
    with atomic_file(path) as beside:
        beside.write_bytes(data)
        if path.exists():
            beside.chmod(permissions(path))
    return header


def read_pinned(folder: Path, wanted: Header) -> tuple[Header, Catalogue]:
    """The commit of a shard that a manifest names.

    Raises:
        FileNotFoundError: there is none of that name any more, or not yet: the manifest may be an older one.
        GalleryCorrupt, GalleryError: its catalogue is damaged, or cannot be read.
    """
    damage: GalleryError | None = None
    for name in (CATALOGUE, NEXT, CATALOGUE):  # the last once more: NEXT may have taken its place meanwhile
        try:
            if os.path.lexists(folder / name):
                header, catalogue = read_catalogue(folder, name)
                if header == wanted:
                    return header, catalogue
        except GalleryError as error:
            if os.path.lexists(folder / name):
                damage = error
    if damage is not None:
        raise damage
    raise FileNotFoundError(2, "no such commit", f"{folder / CATALOGUE} of generation {wanted.generation}")


def check_shard(folder: Path, catalogue: Catalogue, entry: ShardEntry, settings: GallerySettings) -> None:
    """GalleryCorrupt unless a shard's commit holds the rows, and has the settings, that the manifest says."""
    if replace(catalogue.settings, bundle=None) != replace(settings, bundle=None):
        raise GalleryCorrupt(f"{folder} has other settings than the gallery that it is a shard of")
    if catalogue.count != entry.rows:
        raise GalleryCorrupt(
            f"{folder} has {counted(catalogue.count, 'row')}, its gallery's manifest says {entry.rows}"
        )


def describe_shards(rows: Sequence[int]) -> str:
    """How many shards there are and how large they are, in words: `rows` has the rows of each."""
    least, most = min(rows), max(rows)
    each = " each" if len(rows) > 1 and least == most else ""
    return f"{counted(len(rows), 'shard')} of {'' if least == most else f'{least} to '}{counted(most, 'row')}{each}"


def _parse(folder: Path, line: bytes) -> Header:
    header = parse_line(_WORD, line)
    if header is None:
        raise corrupt(folder / MANIFEST, "its first line cannot be understood")
    if header.schema != MANIFEST_SCHEMA:
        raise GalleryError(
            f"{folder}: the schema of the gallery's shards is {header.schema}, this version reads {MANIFEST_SCHEMA}: "
            "use the version that wrote it"
        )
    return header


def _manifest(header: Header, raw: object) -> ShardManifest:
    body = json_object(raw, "the manifest", "settings", "shards", "next_shard", "roots")
    settings = GallerySettings.from_dict(json_object(body["settings"], "settings"))
    listed = json_list(body["shards"], "shards", _MAX_SHARDS)
    shards = tuple(_shard(item, f"shards[{i}]") for i, item in enumerate(listed))
    if not shards:
        raise ValueError("shards must hold at least one shard")
    next_shard = json_integer(body["next_shard"], "next_shard", 1, MAX_LENGTH)
    if len({shard.name for shard in shards}) < len(shards):
        raise ValueError("a shard is named twice")
    if any((shard_number(shard.name) or 0) >= next_shard for shard in shards):
        raise ValueError("next_shard must be larger than the number of every shard")
    return ShardManifest(header.gallery, header.generation, settings, shards, next_shard, check_roots(body["roots"]))


def _shard(raw: object, place: str) -> ShardEntry:
    body = json_object(raw, place, "name", "gallery", "generation", "digest", "rows")
    if not isinstance(body["name"], str) or shard_number(body["name"]) is None:
        raise ValueError(f"{place}.name must be the name of a shard, got {str(body['name'])[:80]!r}")
    for key in ("gallery", "digest"):
        if not isinstance(body[key], str) or not _HEX.fullmatch(body[key]):
            raise ValueError(f"{place}.{key} must be 32 hex digits")
    generation = json_integer(body["generation"], f"{place}.generation", 0, MAX_LENGTH)
    rows = json_integer(body["rows"], f"{place}.rows", 0, MAX_ROWS * _MAX_SHARDS)
    return ShardEntry(body["name"], Header(body["gallery"], generation, body["digest"], SCHEMA), rows)
