"""Galleries of schema 2, whose catalogue was an SQLite file: read here, upgraded by the next writer.

The SQLite file and its write-ahead log are copied to a folder of their own and read there. So reading needs no
permission to write, leaves no file beside the gallery, and sees every commit that was acknowledged, also those of a
writer that was killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...counts import counted
from ...errors import ChanError, GalleryCorrupt, GalleryError
from ..settings import GallerySettings
from .array_file import PAGE, FileRecord
from .catalogue import (
    MAX_ROWS,
    OLD_CATALOGUE,
    Catalogue,
    SegmentRecord,
    check_file,
    check_roots,
    permissions,
)
from .commit import NewFiles, publish, sweep
from .header import Header
from .mapping import open_regular
from .mend import mended_id
from .rows import HeldRows, row_arrays

_log = logging.getLogger(__name__)
_SCHEMA = 2
_TABLES = {
    "meta": ("key", "value", "sum"),
    "segments": (
        *("number", "place", "file", "length", "sums", "fast_file", "fast_length", "fast_sums"),
        *("rows", "live", "sum"),
    ),
    "rows": ("id", "segment", "position", "metadata", "sum"),
}
_STEPS = 1000  # of SQLite's machine between two looks at how much it has done
_MAX_STEPS = 10**7  # such looks: some minutes; a table that is really an endless query ends there
_MAX_BYTES = 1 << 34
_ATTEMPTS = 5
OLD = "schema 2"  # the gallery's name in the header of one that has none yet
NO_FILE = FileRecord("", 0, b"")


def old_files(folder: Path) -> list[Path]:
    """The files of a schema 2 catalogue that are there."""
    names = (OLD_CATALOGUE, f"{OLD_CATALOGUE}-wal", f"{OLD_CATALOGUE}-shm", f"{OLD_CATALOGUE}-journal")
    return [folder / name for name in names if os.path.lexists(folder / name)]


def old_header(folder: Path) -> Header:
    """What tells the present state of a schema 2 catalogue from others: its files' lengths and times."""
    facts = []
    for path in old_files(folder):
        with contextlib.suppress(OSError):
            found = os.stat(path, follow_symlinks=False)
            if not path.name.endswith("-shm"):
                facts.append((path.name, found.st_ino, found.st_size, found.st_mtime_ns))
    return Header(OLD, 0, hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest(), _SCHEMA)


def read_old(folder: Path, unsure: list[str] | None = None) -> tuple[Header, Catalogue, list[HeldRows]]:
    """A schema 2 gallery's last commit, with the rows of each segment.

    Args:
        folder: the gallery.
        unsure: gets the rows whose sums do not fit, which are taken over then; without it they are an error.

    Raises:
        GalleryError: it cannot be read, or a writer of the version that made it is at work.
        GalleryCorrupt: its bytes are not those that were committed.
    """
    with tempfile.TemporaryDirectory(prefix="chan-gallery-") as scratch:
        header = _copy(folder, Path(scratch))
        with _errors(folder / OLD_CATALOGUE), contextlib.closing(sqlite3.connect(Path(scratch, "c"))) as connection:
            _limit(connection)
            _check_tables(connection)
            return (header, *_read(connection, folder / OLD_CATALOGUE, unsure))


def upgrade(folder: Path, *, keep_unsure: bool = False) -> list[str]:
    """Give a schema 2 gallery the files and the catalogue of this version; its vectors stay where they are.

    The caller holds the writer's lock. Interrupted at any point, the gallery is still there, as of either schema.

    Args:
        folder: the gallery.
        keep_unsure: take over rows whose sums do not fit what is stored, as they are stored, instead of refusing.

    Returns: the rows that were not sure, in words.

    Raises:
        GalleryError, GalleryCorrupt: as of `read_old`.
        OSError: the disk is full or refuses.
    """
    unsure: list[str] = []
    _, catalogue, tables = read_old(folder, unsure if keep_unsure else None)
    rows = {segment.rows.name for segment in catalogue.segments}  # which are in no file yet
    sweep(folder, replace(catalogue, dropped=()), catalogue.files.keys() - rows)  # what an interrupted upgrade left
    mode = permissions(folder / OLD_CATALOGUE)
    with NewFiles(folder, catalogue, mode) as files:
        segments = [
            replace(segment, rows=files.write(row_arrays(*table.texts())))
            for segment, table in zip(catalogue.segments, tables, strict=True)
        ]
        files.sync()
        publish(folder, replace(catalogue, segments=tuple(segments), next_file=files.next_file), mode)
    _log.warning("%s was upgraded from schema %d; older versions of chan cannot read it any more", folder, _SCHEMA)
    return unsure


def _copy(folder: Path, scratch: Path) -> Header:
    for _ in range(_ATTEMPTS):
        before = old_header(folder)
        for suffix in ("", "-wal"):
            copy = scratch / f"c{suffix}"
            copy.unlink(missing_ok=True)
            try:
                descriptor = open_regular(folder / f"{OLD_CATALOGUE}{suffix}")
            except FileNotFoundError:
                continue
            with open(descriptor, "rb") as source, open(copy, "wb") as target:
                if os.fstat(descriptor).st_size > _MAX_BYTES:
                    raise GalleryCorrupt(f"{folder / OLD_CATALOGUE}{suffix} is larger than {_MAX_BYTES} bytes")
                shutil.copyfileobj(source, target, 1 << 20)
        if old_header(folder) == before:
            return before
    raise GalleryError(f"{folder} is being written by an older version of chan; wait for it to end")


def _limit(connection: sqlite3.Connection) -> None:
    looks = iter(range(_MAX_STEPS))
    connection.set_progress_handler(lambda: next(looks, None) is None, _STEPS)
    connection.execute("PRAGMA trusted_schema=OFF")


def _check_tables(connection: sqlite3.Connection) -> None:
    found = connection.execute("SELECT type, name, tbl_name FROM sqlite_master").fetchall()
    tables = {name for type_, name, _ in found if type_ == "table"}
    other = [name for type_, name, table in found if type_ not in ("table", "index") or table not in _TABLES]
    if tables != _TABLES.keys() or other:
        raise ValueError(f"its tables must be {', '.join(_TABLES)}, and nothing else")
    for table, columns in _TABLES.items():
        if tuple(row[1] for row in connection.execute(f"PRAGMA table_info({table})")) != columns:
            raise ValueError(f"the table {table} has other columns")


def _read(connection: sqlite3.Connection, path: Path, unsure: list[str] | None) -> tuple[Catalogue, list[HeldRows]]:
    meta = {}
    for key, value, expected in connection.execute("SELECT key, value, sum FROM meta"):
        _verify(expected, f"meta {key}", key, value)
        meta[key] = json.loads(value)
    if meta.get("schema") != _SCHEMA:
        raise GalleryError(f"{path}: the gallery's schema is {meta.get('schema')!r}, this version upgrades {_SCHEMA}")
    settings = GallerySettings.from_dict(meta.get("settings"))
    segments, numbers, named = [], [], list[str]()
    columns = ", ".join(_TABLES["segments"])
    for *values, expected in connection.execute(f"SELECT {columns} FROM segments ORDER BY place"):
        number, _, name, length, sums, fast_name, fast_length, fast_sums, count, live = values
        _verify(expected, f"segment {number}", *values)
        vectors = check_file(name, length, sums, f"segment {number}")
        fast = None if fast_name is None else check_file(fast_name, fast_length, fast_sums, f"segment {number}")
        if type(count) is not int or not 1 <= count <= min(MAX_ROWS, length // 8) or not isinstance(live, bytes):
            raise ValueError(f"segment {number} has {counted(count, 'row')} in {length} bytes")
        if len(live) != -(-count // 8):
            raise ValueError(
                f"segment {number} has {counted(count, 'row')} and {len(live)} bytes that say which are alive"
            )
        alive = np.unpackbits(np.frombuffer(live, np.uint8), count=count).astype(bool)
        segments.append(SegmentRecord(alive, vectors, NO_FILE))
        named += [file.name for file in (vectors, fast) if file is not None]
        numbers.append(number)
    tables = _rows(connection, numbers, segments, unsure)
    kept = [i for i, segment in enumerate(segments) if segment.live.any()]
    gallery = hashlib.blake2b(repr((settings, named)).encode(), digest_size=16).hexdigest()
    if isinstance(fast := meta.get("fast"), dict) and isinstance(fast.get("file"), dict):
        named.append(check_file(fast["file"].get("name"), PAGE, bytes(4), "fast").name)  # nothing reads it any more
    catalogue = Catalogue(gallery, 0, settings, segments=tuple(segments[i] for i in kept))
    catalogue = replace(catalogue, roots=check_roots(meta.get("roots") or {}))
    gone = tuple(name for name in named if name not in catalogue.files)
    return replace(catalogue, dropped=gone), [tables[i] for i in kept]


def _rows(
    connection: sqlite3.Connection, numbers: Sequence[int], segments: Sequence[SegmentRecord], unsure: list[str] | None
) -> list[HeldRows]:
    index = {number: i for i, number in enumerate(numbers)}
    ids: list[list[str | None]] = [[None] * len(segment.live) for segment in segments]
    texts = [["{}"] * len(segment.live) for segment in segments]
    known: set[str] = set()
    mended = []
    for id, segment, position, metadata, expected in connection.execute(
        "SELECT id, segment, position, metadata, sum FROM rows"
    ):
        place = index.get(segment)
        if place is None or type(position) is not int or not 0 <= position < len(ids[place]):
            raise ValueError(f"row {id!r} lies in no segment")
        if not segments[place].live[position] or ids[place][position] is not None or not isinstance(metadata, str):
            raise ValueError(f"row {id!r} lies where no row, or another one, is alive")
        texts[place][position] = metadata
        if type(id) is str and _sum(id, segment, position, metadata) == expected:
            ids[place][position] = id
            known.add(id)
        else:
            mended.append((place, position, _mended(id, (segment, position, metadata), expected, unsure)))
    for place, position, text in mended:
        while text in known:  # 7 and "7" were two rows
            text += "~"
        known.add(text)
        ids[place][position] = text
    for number, segment, found in zip(numbers, segments, ids, strict=True):
        if [id is not None for id in found] != segment.live.tolist():
            raise ValueError(f"segment {number}'s rows are not those alive in it")
    return [HeldRows(found, metadata) for found, metadata in zip(ids, texts, strict=True)]


def _mended(id: Any, rest: tuple[Any, ...], expected: object, unsure: list[str] | None) -> str:
    """The id of a row that was stored under the sum of its Python form (mend.py)."""
    mended = mended_id(id, lambda form: _sum(form.encode(), *rest) == expected) if isinstance(id, str | bytes) else None
    if mended is None:
        if unsure is None or not isinstance(id, str):
            raise ValueError(f"row {id!r} is not what was committed")
        unsure.append(f"row {id!r} is not what was committed, or an earlier version stored its sum in another form")
        return id
    return mended


def _verify(expected: object, what: str, *values: object) -> None:
    if _sum(*values) != expected:
        raise ValueError(f"{what} is not what was committed")


def _sum(*values: object) -> int:
    """The sum of a record in schema 2: a CRC-32 over the Python form of each value."""
    total = 0
    for value in values:
        data = value if isinstance(value, bytes) else repr(value).encode()
        total = zlib.crc32(len(data).to_bytes(8, "little") + data, total)
    return total


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except GalleryError:
        raise
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorname", "") in ("SQLITE_FULL", "SQLITE_IOERR_WRITE"):
            raise GalleryError(f"{path} cannot be read: no room for a copy of it ({error})") from error
        raise GalleryCorrupt(f"{path}: {error}; restore the file from a copy") from error
    except (sqlite3.Error, ValueError, RecursionError, OverflowError, ChanError) as error:
        raise GalleryCorrupt(f"{path}: {error}; restore the file from a copy") from error
