"""Immutable files of named arrays, memory-mapped, whose bytes are checked before they are first used.

A file has pages (array_file.py). A page is summed when a search first touches it and not again while the file is open:
about 2 GB/s once, nothing afterwards, and a flipped bit is an error, never an answer.

What is promised of a file that something else changes while it is open: `recheck` asks the file system for its inode,
length and times, and sums every page again that was used if any of them is new. A search calls it before it reads and
before it returns, and starts again if a file was touched in between. So a file that was cut short or overwritten is an
error, and never part of an answer. A file whose name is gone, or leads to another file now, can still be changed, so
its pages are summed before each search, and a gallery maps the file that has the name when it is searched next. But
what is gone after a search was most likely removed by a newer commit, and is not summed. Two cases are beyond a program
that maps files: one that is cut short in the very middle of a search ends the process (SIGBUS), and a change that
leaves length and times as they were is not noticed.
"""

from __future__ import annotations

import os
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import GalleryCorrupt, GalleryError, quoted
from .array_file import ALIGN, MAX_HEADER, PAGE, FileRecord, Place, read_places
from .mapping import ADVICE, map_file, open_regular

SEGMENTS = "segments"  # the folder of a gallery's files
MANIFEST = "shards"  # the file that makes a folder a gallery in shards, see sharded/manifest.py
_TICK = 20_000_000  # nanoseconds; file systems take times from a clock that moves every 1 to 10 ms


class MappedFile:
    """A file of arrays, mapped; `read` checks the pages it touches for the first time.

    Raises:
        FileNotFoundError: there is no such file.
        GalleryCorrupt: the file is of another length, its header is damaged, or it is no regular file.
        GalleryError: it cannot be read.
    """

    def __init__(self, folder: Path, record: FileRecord) -> None:
        self.path = folder / record.name
        self._record = record
        self._sums = np.frombuffer(record.sums, "<u4")
        self._checked = bytearray(len(self._sums))
        self._accepted: frozenset[int] = frozenset()  # pages whose damage is known
        self._replaced = False  # whether its name was another file's when it was last checked
        self._places: dict[str, Place] = {}
        descriptor = open_regular(self.path)
        try:
            found = os.fstat(descriptor)
            self._seen = _seen(found)  # one tuple: threads read it while another changes it
            self._check_length(found.st_size)
            self._bytes = map_file(descriptor, record.length)
            self._memory = self._bytes.data  # of which slices take a third of the time
        except OSError as error:
            raise GalleryError(f"{self.path} cannot be mapped: {error.strerror}") from error
        finally:
            os.close(descriptor)
        self._check(0, 8)
        size = int(self._bytes[:8].view("<u8")[0])
        if size > min(MAX_HEADER, record.length - 8) or (8 + size) % ALIGN:
            raise GalleryCorrupt(f"{self.path}: a header of {size} bytes does not fit the file")
        self._check(0, 8 + size)
        self._places = read_places(bytes(self._bytes[8 : 8 + size]), 8 + size, record.length, self.path)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays."""
        return tuple(self._places)

    def expect(self, key: str, dtype: type[np.generic], *shape: int) -> None:
        """GalleryCorrupt unless there is an array of this name, type and shape."""
        place = self._places.get(key)
        if place is None:
            raise GalleryCorrupt(f"{self.path}: the array {key} is missing")
        if place.dtype != dtype or (place.rows, *place.row) != shape:
            found = f"{place.dtype} {[place.rows, *place.row]}"
            raise GalleryCorrupt(f"{self.path}: {key} must be {np.dtype(dtype)} {list(shape)}, got {found}")

    def check_alignment(self, key: str) -> None:
        """GalleryCorrupt unless an array begins on a cache line, as kernels read it."""
        if self._places[key].begin % ALIGN:
            raise GalleryCorrupt(f"{self.path}: {key} must begin at a multiple of {ALIGN} bytes")

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of an array; GalleryCorrupt where there is none of this name."""
        if key not in self._places:
            raise GalleryCorrupt(f"{self.path}: the array {key} is missing")
        return (self._places[key].rows, *self._places[key].row)

    def read(self, key: str, first: int = 0, last: int | None = None) -> NDArray[Any]:
        """Rows first..last - 1 of an array, mapped, once their bytes are known to be those that were committed."""
        place = self._places[key]
        stop = place.rows if last is None else last
        begin, end = self._checked_span(key, first, stop)
        return self._bytes[begin:end].view(place.dtype).reshape(stop - first, *place.row)

    def read_bytes(self, key: str, first: int, last: int) -> bytes:
        """The bytes of rows first..last - 1 of an array, copied; as `read`, but quick where their page was checked."""
        place = self._places[key]
        begin, end = place.begin + first * place.stride, place.begin + last * place.stride
        page = begin // PAGE
        if not (0 <= first < last <= place.rows and end <= (page + 1) * PAGE and self._checked[page]):
            self._checked_span(key, first, last)
        return self._memory[begin:end].tobytes()

    def unchecked(self, key: str) -> NDArray[Any]:
        """An array, mapped, for a caller who reads a row of it only after a `read` of that row."""
        place = self._places[key]
        return self._bytes[place.begin : place.end].view(place.dtype).reshape(place.rows, *place.row)

    @property
    def identity(self) -> tuple[int, ...] | None:
        """Device, inode, length, and times of modification and change in nanoseconds, as they were last checked.

        None as long as the file could be touched again under the same times.
        """
        seen = self._seen
        return seen.identity if seen.settled else None

    @property
    def replaced(self) -> bool:
        """Whether its name was another file's when it was last checked, and is one's now."""
        return self._replaced and self._is_another(self._facts())

    def recheck(self, *, may_be_removed: bool = False) -> bool:
        """Check again what was read, if the file was touched since, and return whether it was.

        It costs one question to the file system if not. A file that was touched within the last moments could be
        touched again under the same time, so it is summed until that time is past, and one that has lost its name is
        summed each time.

        Args:
            may_be_removed: let a file whose name is gone be: a newer commit may not need it.

        Raises:
            GalleryCorrupt: the file was cut short, or its bytes are not those that were committed.
        """
        before, found = self._seen, self._facts()
        self._replaced = self._is_another(found)
        if found is None or self._replaced:
            if self._replaced or not may_be_removed:
                self._check_again()
            return False
        now = _seen(found)
        if now.identity == before.identity and before.settled:
            return False
        self._check_length(found.st_size)
        self._check_again()
        self._seen = now
        return now.identity != before.identity

    def damaged_pages(self) -> list[tuple[int, int]]:
        """First byte and end of every damaged page. Reads the whole file."""
        damaged = [page for page in range(len(self._sums)) if not self._intact(page)]
        return [(page * PAGE, min((page + 1) * PAGE, self._record.length)) for page in damaged]

    def accept_damage(self) -> None:
        """Read damaged pages from now on like others: for a caller who leaves out the rows that lie there."""
        self._accepted = frozenset(page for page in range(len(self._sums)) if not self._intact(page))
        self._checked[:] = b"\1" * len(self._checked)

    def damaged(self) -> list[str]:
        """Every damaged page, in words: which bytes, and which arrays lie there. Reads the whole file."""
        return [self._describe(begin, end) for begin, end in self.damaged_pages()]

    def damaged_rows(self, key: str) -> NDArray[np.bool_]:
        """For each row of an array whether damaged bytes lie in it."""
        place = self._places[key]
        lost = np.zeros(place.rows, bool)
        for begin, end in self.damaged_pages():
            if begin < place.end and end > place.begin and place.stride:
                first = max(0, begin - place.begin) // place.stride
                lost[first : -(-(min(end, place.end) - place.begin) // place.stride)] = True
        return lost

    def _checked_span(self, key: str, first: int, last: int) -> tuple[int, int]:
        """Where rows first..last - 1 of an array begin and end, once their bytes are known to be right."""
        place = self._places[key]
        if not 0 <= first <= last <= place.rows:
            raise GalleryCorrupt(f"{self.path}: rows {first} to {last} lie outside of {key}, which has {place.rows}")
        begin, end = place.begin + first * place.stride, place.begin + last * place.stride
        self._check(begin, end)
        return begin, end

    def _facts(self) -> os.stat_result | None:
        """What the file system says of the name; None where it is gone, most likely because of a newer commit."""
        try:
            return os.stat(self.path, follow_symlinks=False)
        except OSError:
            return None

    def _is_another(self, found: os.stat_result | None) -> bool:
        return found is not None and _identity(found)[:2] != self._seen.identity[:2]

    def _check_length(self, length: int) -> None:
        if length != self._record.length:
            raise GalleryCorrupt(f"{self.path} has {length} bytes, {self._record.length} were committed")

    def _intact(self, page: int) -> bool:
        return zlib.crc32(self._bytes[page * PAGE : (page + 1) * PAGE].data) == int(self._sums[page])

    def _check(self, begin: int, end: int) -> None:
        first, last = begin // PAGE, -(-end // PAGE)
        if 0 not in self._checked[first:last]:
            return
        for page in range(first, last):
            if not self._checked[page]:
                if not self._intact(page):
                    raise self._damage(page)
                self._checked[page] = 1

    def _check_again(self) -> None:
        for page in range(len(self._sums)):
            if self._checked[page] and page not in self._accepted and not self._intact(page):
                raise self._damage(page)

    def _damage(self, page: int) -> GalleryCorrupt:
        where = self._describe(page * PAGE, min((page + 1) * PAGE, self._record.length))
        gallery = self.path.parent.parent
        if os.path.lexists(gallery.parent / MANIFEST):
            gallery = gallery.parent
        return GalleryCorrupt(
            f"{where}: the bytes are not those that were committed{ADVICE}"
            f"chan gallery verify {quoted(gallery)}, and save the rest with: chan gallery repair {quoted(gallery)}"
        )

    def _describe(self, begin: int, end: int) -> str:
        inside = [key for key, place in self._places.items() if place.begin < end and place.end > begin]
        return f"{self.path} bytes {begin} to {end - 1} ({', '.join(inside) or 'header'})"


class _Seen(NamedTuple):
    """A file as it was when it was last checked.

    Attributes:
        identity: see `MappedFile.identity`.
        settled: whether a change from then on gives it another time.
    """

    identity: tuple[int, ...]
    settled: bool


def _seen(found: os.stat_result) -> _Seen:
    return _Seen(_identity(found), _settled(found))


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _settled(found: os.stat_result) -> bool:
    """Whether a change from now on gives the file another time than it has."""
    now = time.time_ns()  # a time of modification may lie behind it: a copy keeps what another clock gave
    return now - found.st_ctime_ns > _TICK and abs(now - found.st_mtime_ns) > _TICK
