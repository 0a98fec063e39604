"""The one SQLite file that says which segments and rows exist: what is not in it does not exist.

Every record carries a CRC-32 of its own values, checked whenever it is read, so that a flipped bit in the file is an
error and not another id. The journal is a write-ahead log with synchronous=FULL: readers never wait for a commit, and a
commit that returned survives a power cut. Nothing in here depends on a clock.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import GalleryCorrupt, GalleryError
from .files import FileRecord
from .mend import mended_id

CATALOGUE = "catalogue.sqlite"
SCHEMA = 2
_BUSY_SECONDS = 30.0  # that a writer waits for another connection's checkpoint
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, sum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE segments (
    number INTEGER PRIMARY KEY, place INTEGER NOT NULL UNIQUE,
    file TEXT NOT NULL, length INTEGER NOT NULL, sums BLOB NOT NULL,
    fast_file TEXT, fast_length INTEGER, fast_sums BLOB,
    rows INTEGER NOT NULL, live BLOB NOT NULL, sum INTEGER NOT NULL);
CREATE TABLE rows (
    id TEXT PRIMARY KEY, segment INTEGER NOT NULL, position INTEGER NOT NULL,
    metadata TEXT NOT NULL, sum INTEGER NOT NULL) WITHOUT ROWID;
CREATE UNIQUE INDEX place ON rows (segment, position);
"""


def is_gallery(folder: str | Path) -> bool:
    """Whether there is a gallery in a folder."""
    return (Path(folder) / CATALOGUE).is_file()


@dataclass(frozen=True)
class SegmentRecord:
    """One segment.

    Attributes:
        number: its name, never used again, so that (number, position) means one row for ever.
        place: where its rows stand in the gallery's order.
        file, fast: its files.
        rows: how many it holds.
        live: [rows], which of them are not deleted.
    """

    number: int
    place: int
    file: FileRecord
    fast: FileRecord | None
    rows: int
    live: NDArray[np.bool_]


@dataclass(frozen=True)
class Row:
    """One row: its id, where its vectors lie, and the user's metadata."""

    id: str
    segment: int
    position: int
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Relabel:
    """A row that keeps its place and its vectors, under a new id or with new metadata."""

    id: str
    new_id: str
    metadata: Mapping[str, Any]


class Catalogue:
    """Reads and writes the catalogue; safe to use from several threads.

    Raises:
        GalleryError: there is no catalogue, or it is of another schema.
        GalleryCorrupt: SQLite or a record's sum says that bytes have changed.
    """

    def __init__(self, folder: Path, *, create: bool = False, name: str = CATALOGUE) -> None:
        self.path = folder / name
        if not create and not self.path.is_file():
            raise GalleryError(f"{folder} is not a gallery; make one with: chan index BUNDLE IMAGES -o {folder}")
        self._lock = threading.RLock()
        mode = "rwc" if create else "rw"
        if not os.access(folder, os.W_OK):  # nobody here can write beside us; SQLite then needs no files of its own
            mode = "ro&immutable=1"
        with _errors(self.path):
            uri = f"{self.path.absolute().as_uri()}?mode={mode}"
            self._connection = sqlite3.connect(
                uri, uri=True, isolation_level=None, check_same_thread=False, timeout=_BUSY_SECONDS
            )
            self._connection.execute("PRAGMA synchronous=FULL")
            if create:
                self._connection.execute("PRAGMA journal_mode=WAL")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        """All or nothing: commits at the end, rolls back on any error. `DEFERRED` reads one consistent state.

        Within another one of the same thread it is part of that.
        """
        with self._lock, _errors(self.path):
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute(f"BEGIN {kind}")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def create_tables(self) -> None:
        """Make the empty tables."""
        for statement in filter(str.strip, _TABLES.split(";")):
            self._connection.execute(statement)

    # -- meta

    def set_meta(self, key: str, value: object) -> None:
        """Store one JSON value."""
        text = json.dumps(value, sort_keys=True)
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, text, _sum(key, text)))

    def meta(self, key: str) -> Any:
        """One JSON value; None where it was never set."""
        with self._lock, _errors(self.path):
            found = self._connection.execute("SELECT value, sum FROM meta WHERE key = ?", (key,)).fetchone()
        if found is None:
            return None
        self._verify(found[1], f"meta {key}", key, found[0])
        return json.loads(found[0])

    # -- segments

    def segments(self) -> list[SegmentRecord]:
        """Every segment, in the order of its rows."""
        with self._lock, _errors(self.path):
            found = self._connection.execute("SELECT * FROM segments ORDER BY place").fetchall()
        records = []
        for *values, expected in found:
            number, place, name, length, sums, fast_name, fast_length, fast_sums, rows, live = values
            self._verify(expected, f"segment {number}", *values)
            fast = None if fast_name is None else FileRecord(fast_name, fast_length, fast_sums)
            alive = np.unpackbits(np.frombuffer(live, np.uint8), count=rows).astype(bool)
            records.append(SegmentRecord(number, place, FileRecord(name, length, sums), fast, rows, alive))
        return records

    def put_segment(self, record: SegmentRecord) -> None:
        """Insert a segment or replace the one of the same number."""
        fast = (None, None, None) if record.fast is None else _fields(record.fast)
        live = np.packbits(record.live).tobytes()
        values = (record.number, record.place, *_fields(record.file), *fast, record.rows, live)
        self._connection.execute(
            "INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*values, _sum(*values))
        )

    def new_number(self) -> int:
        """A segment number that was never used; takes effect with the transaction."""
        number = int(self.meta("next_segment"))
        self.set_meta("next_segment", number + 1)
        return number

    def drop_segments(self, numbers: Iterable[int]) -> None:
        """Remove segments, not their rows."""
        self._connection.executemany("DELETE FROM segments WHERE number = ?", [(number,) for number in numbers])

    def kill(self, rows: Iterable[Row]) -> None:
        """Remove rows: their records, and their bits among the living of their segments."""
        dead: dict[int, list[int]] = {}
        for row in rows:
            dead.setdefault(row.segment, []).append(row.position)
            self._connection.execute("DELETE FROM rows WHERE id = ?", (row.id,))
        for record in self.segments():
            if record.number in dead:
                live = record.live.copy()
                live[dead[record.number]] = False
                self.put_segment(replace(record, live=live))

    # -- rows

    def put_rows(self, rows: Iterable[Row]) -> None:
        """Insert rows, or move those whose id exists."""

        def values() -> Iterator[tuple[Any, ...]]:
            for row in rows:
                fields = (row.id, row.segment, row.position, json.dumps(row.metadata, sort_keys=True))
                yield (*fields, _sum(*fields))

        self._connection.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?)", values())

    def move_rows(self, rows: Iterable[Row], segment: int) -> None:
        """Give rows, in this order, the places 0, 1, ... of a segment that has no other rows."""
        moved = [replace(row, segment=segment, position=i) for i, row in enumerate(rows)]
        self._connection.executemany("DELETE FROM rows WHERE id = ?", [(row.id,) for row in moved])
        self.put_rows(moved)

    def relabel(self, changes: Iterable[tuple[Row, str, Mapping[str, Any]]]) -> None:
        """Give rows new ids and metadata, in their places."""
        changes = list(changes)
        self._connection.executemany("DELETE FROM rows WHERE id = ?", [(row.id,) for row, _, _ in changes])
        self.put_rows(replace(row, id=id, metadata=metadata) for row, id, metadata in changes)

    def row_at(self, segment: int, position: int) -> Row | None:
        """The row in one place; None where there is none any more."""
        found = self._rows("WHERE segment = ? AND position = ?", (segment, position))
        if not found or (found[0].segment, found[0].position) != (segment, position):
            return None
        return found[0]

    def rows_of(self, segment: int) -> list[Row]:
        """The rows of one segment, by position."""
        return self._rows("WHERE segment = ? ORDER BY position", (segment,))

    def rows(self) -> list[Row]:
        """Every row, in the order of the gallery; call it within a transaction."""
        return [row for record in self.segments() for row in self.rows_of(record.number)]

    def find(self, ids: Iterable[str]) -> dict[str, Row]:
        """The rows of those ids that exist."""
        return {row.id: row for id in dict.fromkeys(ids) for row in self._rows("WHERE id = ?", (id,))}

    def mend_ids(self) -> int:
        """Store the ids of mend.py as text, under sums of what is stored; returns how many there were."""
        with self._lock, _errors(self.path):
            found = self._connection.execute("SELECT id, segment, position, metadata, sum FROM rows").fetchall()
        mended = 0
        for id, *rest, expected in found:
            if type(id) is str and _sum(id, *rest) == expected:
                continue
            text = _mended(id, rest, expected)
            if text is None:  # damaged: that is for `verify` to report
                continue
            segment, position, metadata = rest
            while text != id and self.find([text]):  # 7 and "7" were two rows
                text += "~"
            self._connection.execute("DELETE FROM rows WHERE segment = ? AND position = ?", (segment, position))
            self.put_rows([Row(text, segment, position, json.loads(metadata))])
            mended += 1
        return mended

    def damaged(self) -> list[str]:
        """What SQLite's own check and the records' sums find, in words."""
        try:
            with self._lock:
                problems = [text for (text,) in self._connection.execute("PRAGMA integrity_check") if text != "ok"]
        except sqlite3.Error as error:
            return [f"{self.path}: {error}"]
        found = [f"{self.path}: {problem}" for problem in problems]
        for check in (self._check_meta, self.segments, lambda: self._rows("", ())):
            try:
                check()
            except GalleryCorrupt as error:
                found.append(str(error))
        return found

    def _check_meta(self) -> None:
        with self._lock, _errors(self.path):
            keys = [key for (key,) in self._connection.execute("SELECT key FROM meta")]
        for key in keys:
            self.meta(key)

    def _rows(self, clause: str, values: tuple[object, ...]) -> list[Row]:
        with self._lock, _errors(self.path):
            query = f"SELECT id, segment, position, metadata, sum FROM rows {clause}"
            found = self._connection.execute(query, values).fetchall()
        rows = []
        for id, *rest, expected in found:
            if type(id) is not str or _sum(id, *rest) != expected:
                mended = _mended(id, rest, expected)
                if mended is None:
                    self._verify(expected, f"row {id!r}", id, *rest)
                id = mended
            segment, position, metadata = rest
            rows.append(Row(id, segment, position, json.loads(metadata)))
        return rows

    def _verify(self, expected: int, what: str, *values: object) -> None:
        if _sum(*values) != expected:
            raise GalleryCorrupt(f"{self.path}: {what} is not what was committed; restore the file from a copy")


def _fields(record: FileRecord) -> tuple[str, int, bytes]:
    return record.name, record.length, record.sums


def _mended(id: str | bytes, rest: Sequence[object], expected: int) -> str | None:
    """The id of a row whose sum is not that of what is stored, if an earlier version wrote it so."""
    return mended_id(id, lambda form: _sum(form.encode(), *rest) == expected)


def _sum(*values: object) -> int:
    total = 0
    for value in values:
        data = value if isinstance(value, bytes) else repr(value).encode()
        total = zlib.crc32(len(data).to_bytes(8, "little") + data, total)
    return total


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """SQLite's errors as the package's own."""
    try:
        yield
    except sqlite3.OperationalError as error:
        reasons = {
            "SQLITE_FULL": "no space is left on the disk; nothing of this change was kept",
            "SQLITE_READONLY": "the folder is read-only",
            "SQLITE_CANTOPEN": "it cannot be opened or its folder not written",
            "SQLITE_BUSY": f"another process has kept it locked for {_BUSY_SECONDS:.0f} s",
        }
        name = getattr(error, "sqlite_errorname", "")
        reason = next((text for key, text in reasons.items() if name.startswith(key)), str(error))
        raise GalleryError(f"{path}: {reason}") from error
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise GalleryCorrupt(f"{path}: {error}; restore the file from a copy") from error


def checked_meta(catalogue: Catalogue, path: Path) -> Mapping[str, Any]:
    """The settings of a catalogue whose schema this version knows."""
    schema = catalogue.meta("schema")
    if schema != SCHEMA:
        raise GalleryError(f"{path}: the gallery's schema is {schema!r}, this version reads {SCHEMA}: index it again")
    settings: Mapping[str, Any] = catalogue.meta("settings")
    return settings
