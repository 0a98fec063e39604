"""The one file that says which segments and rows exist: what is not in it does not exist.

`GALLERY/catalogue` is replaced whole by each commit (commit.py), so a reader needs no lock, no journal and no
permission to write: whatever it opens is one commit, complete. The file is a line that names the gallery, the
generation and the digest of all that follows, and then one JSON object. A reader learns of a commit by reading that
line again. The lists of ids and metadata lie in the segments' own files (rows.py), so a commit rewrites a few hundred
bytes for each segment, 4 for each 256 KiB of files and a bit for each row of a segment that has deleted ones.

Everything in it is checked before it is used: types, sizes, counts and names, with limits first. Nothing in here
depends on a clock.
"""

from __future__ import annotations

import base64
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...counts import counted
from ...errors import ChanError, GalleryCorrupt, GalleryError, GalleryMissing
from ..settings import GallerySettings
from .array_file import MAX_LENGTH, PAGE, FileRecord
from .files import MANIFEST
from .header import LINE, Header, line_of, parse_line, text_of, with_line
from .json_values import json_bytes, json_integer, json_list, json_object, json_share, plain_json
from .mapping import open_regular

CATALOGUE = "catalogue"
OLD_CATALOGUE = "catalogue.sqlite"  # of schema 2
SCHEMA = 4
_BEFORE = 3  # had a search of prefixes that this version does not have; all else is the same
MAX_ROWS = 1 << 31  # of one segment
MEASURED = ("digits", "k", "queries", "second", "codes", "rescored")  # what is kept of a preparation besides its file
_MAX_CATALOGUE = 1 << 28
_MAX_SEGMENTS = 1 << 20
_MAX_DROPPED = 1 << 20
_WORD = "chan-gallery"  # that the file begins with
_FILE = re.compile(r"[0-9a-f]{32}(-\d{1,18})?\.safetensors")  # with a number since schema 3


@dataclass(frozen=True, eq=False)
class SegmentRecord:
    """One segment.

    Attributes:
        live: [rows], which of its rows are not deleted.
        vectors: its file of codes and fine copies.
        rows: its file of ids and metadata.
        prepared: its file of what the gallery's preparation adds.
    """

    live: NDArray[np.bool_]
    vectors: FileRecord
    rows: FileRecord
    prepared: FileRecord | None = None

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """Its two or three files."""
        return tuple(file for file in (self.vectors, self.rows, self.prepared) if file is not None)

    @property
    def living_bytes(self) -> float:
        """Bytes of its vectors' file that belong to rows which are not deleted."""
        return self.vectors.length * float(self.live.mean())


@dataclass(frozen=True)
class PreparedRecord:
    """How a gallery was prepared, see prepare.Preparation; the plan's arrays lie in `file`."""

    file: FileRecord
    digits: int
    k: int
    queries: int
    second: float | None
    codes: float | None
    rescored: float | None


@dataclass(frozen=True)
class Catalogue:
    """One commit of a gallery.

    Attributes:
        gallery: 32 hex digits that tell it from every other gallery.
        generation: how many commits went before.
        settings: what was fixed when it was made.
        next_file: the number of the next file; no commit has named a file of this number or a higher one.
        segments: in the order of their rows.
        prepared: how search was prepared, if it was.
        roots: name -> folder of the roots that rows were indexed from (indexing/identity.py).
        dropped: files that this gallery wrote and no commit needs any more, until they are removed.
    """

    gallery: str
    generation: int
    settings: GallerySettings
    next_file: int = 1
    segments: tuple[SegmentRecord, ...] = ()
    prepared: PreparedRecord | None = None
    roots: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    @property
    def files(self) -> dict[str, FileRecord]:
        """Every file it needs, by name."""
        files = {file.name: file for segment in self.segments for file in segment.files}
        if self.prepared is not None:
            files[self.prepared.file.name] = self.prepared.file
        return files

    @property
    def count(self) -> int:
        """Rows that are not deleted."""
        return sum(int(np.count_nonzero(segment.live)) for segment in self.segments)

    def describe(self) -> str:
        """Rows, segments and bytes in words."""
        size = sum(file.length for segment in self.segments for file in segment.files)
        each = f", {size / self.count / 1e3:.1f} KB a row" if self.count else ""
        rows = counted(self.count, self.settings.kind.removesuffix("s"))
        segments = counted(len(self.segments), "segment")
        return f"{rows} in {segments}, {size / 1e6:.1f} MB{each}"

    def followed_by(self, **changes: Any) -> Catalogue:
        """The next commit; files that it does not need any more are noted as dropped."""
        following = replace(self, **changes, generation=self.generation + 1)
        unneeded = dict.fromkeys([*self.dropped, *self.files])
        kept = following.files
        return replace(following, dropped=tuple(name for name in unneeded if name not in kept))

    def file_number(self, name: str) -> int | None:
        """The number of a file that this gallery's naming made; None for every other name."""
        found = re.fullmatch(rf"{self.gallery}-(\d{{1,18}})\.safetensors", name)
        return None if found is None else int(found[1])

    def to_bytes(self) -> tuple[Header, bytes]:
        """The file's bytes, and what its first line says."""
        body = {
            "settings": self.settings.to_dict(),
            "next_file": self.next_file,
            "segments": [_segment_dict(record) for record in self.segments],
            "prepared": None
            if self.prepared is None
            else {**vars(self.prepared), "file": _file_dict(self.prepared.file)},
            "roots": dict(self.roots),
            "dropped": list(self.dropped),
        }
        text = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
        return with_line(_WORD, SCHEMA, self.gallery, self.generation, text)


def is_gallery(folder: str | Path) -> bool:
    """Whether there is a gallery in a folder: in shards or not, of this schema or an older one."""
    return any(os.path.lexists(Path(folder) / name) for name in (CATALOGUE, OLD_CATALOGUE, MANIFEST))


def no_gallery(folder: Path) -> GalleryMissing:
    """The error of a folder without a gallery."""
    absent = "" if os.path.lexists(folder) else ", as it does not exist"
    return GalleryMissing(f"{folder} is not a gallery{absent}; make one with: chan index BUNDLE IMAGES -o GALLERY")


def read_header(folder: Path, name: str = CATALOGUE) -> Header:
    """What the first line says of the newest commit, or of the one that a file of another name holds.

    Raises:
        GalleryError: there is no gallery, its catalogue cannot be read, or this version does not know its schema.
        GalleryCorrupt: the line is not what was committed.
    """
    return _parse_line(folder, read_head(folder / name, LINE))


def catalogue_line(header: Header) -> bytes:
    """The first line of the catalogue with this header, as it is written."""
    return line_of(_WORD, header)


def read_catalogue(folder: Path, name: str = CATALOGUE) -> tuple[Header, Catalogue]:
    """The newest commit, or the one that a file of another name holds.

    Raises:
        GalleryError: as of `read_header`.
        GalleryCorrupt: the bytes are not those that were committed, or break a rule of this module.
    """
    path = folder / name
    data = read_head(path, _MAX_CATALOGUE)
    header = _parse_line(folder, data[:LINE])
    try:
        return header, _catalogue(header, plain_json(text_of(header, data)))
    except (ValueError, RecursionError, ChanError) as error:
        raise corrupt(path, str(error)) from error


def read_head(path: Path, limit: int) -> bytes:
    """The first `limit` bytes of a gallery's catalogue; all of it where more than its line is asked for.

    Raises:
        GalleryError: there is none, or it cannot be read.
        GalleryCorrupt: it has more bytes, or is no regular file.
    """
    try:
        descriptor = open_regular(path)
    except OSError as error:
        raise no_gallery(path.parent) from error
    try:
        if limit > LINE and os.fstat(descriptor).st_size > limit:
            raise corrupt(path, f"it is larger than {limit} bytes")
        data = b""
        while len(data) < limit and (more := os.read(descriptor, limit - len(data))):
            data += more
        return data
    except OSError as error:
        raise GalleryError(f"{path} cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _parse_line(folder: Path, line: bytes) -> Header:
    header = parse_line(_WORD, line)
    if header is None:
        raise corrupt(folder / CATALOGUE, "its first line cannot be understood")
    if header.schema not in (SCHEMA, _BEFORE):
        raise GalleryError(
            f"{folder}: the gallery's schema is {header.schema}, this version reads {SCHEMA}: index it again, or use "
            "the version that wrote it"
        )
    return header


def corrupt(path: Path, reason: str) -> GalleryCorrupt:
    """The error of a file that commits replace whole."""
    return GalleryCorrupt(f"{path} is not what was committed: {reason}; restore the file from a copy")


# -- to JSON and back


def _file_dict(record: FileRecord) -> dict[str, Any]:
    return {"name": record.name, "length": record.length, "sums": base64.b64encode(record.sums).decode()}


def _segment_dict(record: SegmentRecord) -> dict[str, Any]:
    live = None if record.live.all() else base64.b64encode(np.packbits(record.live).tobytes()).decode()
    return {
        "count": len(record.live),
        "live": live,
        "vectors": _file_dict(record.vectors),
        "rows": _file_dict(record.rows),
        "prepared": None if record.prepared is None else _file_dict(record.prepared),
    }


def _catalogue(header: Header, raw: object) -> Catalogue:
    key = "fast" if header.schema == _BEFORE else "prepared"
    body = json_object(raw, "the catalogue", "settings", "next_file", "segments", key, "roots", "dropped")
    settings = GallerySettings.from_dict(json_object(body["settings"], "settings"))
    segments = tuple(
        _segment(item, f"segments[{i}]", key)
        for i, item in enumerate(json_list(body["segments"], "segments", _MAX_SEGMENTS))
    )
    dropped = [
        _file_name(item, f"dropped[{i}]") for i, item in enumerate(json_list(body["dropped"], "dropped", _MAX_DROPPED))
    ]
    prepared = None
    if header.schema == _BEFORE:
        dropped += _files_of_before(body[key], segments)
        segments = tuple(replace(segment, prepared=None) for segment in segments)
    elif body[key] is not None:
        prepared = _prepared(body[key])
    next_file = json_integer(body["next_file"], "next_file", 1, MAX_LENGTH)
    roots = check_roots(body["roots"])
    catalogue = Catalogue(
        header.gallery, header.generation, settings, next_file, segments, prepared, roots, tuple(dropped)
    )
    count = sum(len(segment.files) for segment in segments) + (prepared is not None)
    if len(catalogue.files) != count:
        raise ValueError("a file is named twice")
    if not catalogue.files.keys().isdisjoint(dropped):
        raise ValueError("dropped names a file that is needed")
    if any((catalogue.file_number(name) or 0) >= next_file for name in [*catalogue.files, *dropped]):
        raise ValueError("next_file must be larger than the number of every file")
    return catalogue


def _files_of_before(raw: object, segments: Sequence[SegmentRecord]) -> list[str]:
    """Names of the files of schema 3's search of prefixes, which nothing reads any more."""
    names = [segment.prepared.name for segment in segments if segment.prepared is not None]
    if raw is not None:
        names.append(_file(json_object(raw, "fast").get("file"), "fast.file").name)
    return names


def _segment(raw: object, place: str, key: str) -> SegmentRecord:
    body = json_object(raw, place, "count", "live", "vectors", "rows", key)
    count = json_integer(body["count"], f"{place}.count", 1, MAX_ROWS)
    vectors = _file(body["vectors"], f"{place}.vectors")
    if count * 8 > vectors.length:  # each row has an int64 of its own in that file
        raise ValueError(f"{place}.count is {count}, more rows than {vectors.length} bytes can hold")
    if body["live"] is None:
        live = np.ones(count, bool)
    else:
        bits = np.frombuffer(json_bytes(body["live"], f"{place}.live", -(-count // 8)), np.uint8)
        live = np.unpackbits(bits, count=count).astype(bool)
    prepared = None if body[key] is None else _file(body[key], f"{place}.{key}")
    return SegmentRecord(live, vectors, _file(body["rows"], f"{place}.rows"), prepared)


def _prepared(raw: object) -> PreparedRecord:
    body = json_object(raw, "prepared", "file", *MEASURED)
    shares = [body[name] for name in ("second", "codes", "rescored")]
    return PreparedRecord(
        _file(body["file"], "prepared.file"),
        json_integer(body["digits"], "prepared.digits", 1, 2),
        json_integer(body["k"], "prepared.k", 1, MAX_ROWS),
        json_integer(body["queries"], "prepared.queries", 0, MAX_ROWS),
        *(None if share is None else json_share(share, "prepared's shares") for share in shares),
    )


def _file(raw: object, place: str) -> FileRecord:
    body = json_object(raw, place, "name", "length", "sums")
    sums = base64.b64decode(body["sums"], validate=True) if isinstance(body["sums"], str) else None
    return check_file(body["name"], body["length"], sums, place)


def check_file(name: object, length: object, sums: object, place: str) -> FileRecord:
    """A file's record; ValueError, which begins with `place`, unless it can be one of a gallery's file."""
    size = json_integer(length, f"{place}.length", 64, MAX_LENGTH)
    if not isinstance(sums, bytes) or len(sums) != 4 * -(-size // PAGE):
        raise ValueError(f"{place}.sums must hold 4 bytes for each {PAGE} bytes of the file")
    return FileRecord(_file_name(name, f"{place}.name"), size, sums)


def _file_name(raw: object, place: str) -> str:
    if not isinstance(raw, str) or not _FILE.fullmatch(raw):
        raise ValueError(f"{place} must be the name of a gallery's file, got {str(raw)[:80]!r}")
    return raw


def check_roots(raw: object) -> Mapping[str, str]:
    """Roots that rows were indexed from; ValueError unless they are text by text."""
    if not isinstance(raw, dict) or not all(isinstance(text, str) for text in (*raw, *raw.values())):
        raise ValueError("roots must be an object of text")
    return raw


def permissions(path: Path) -> int:
    """Permission bits of a file, which the files of the next commit take over."""
    return stat.S_IMODE(os.stat(path).st_mode)
