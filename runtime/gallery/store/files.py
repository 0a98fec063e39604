"""Immutable files of named arrays, memory-mapped, whose bytes are checked before they are first used.

A file is laid out as safetensors: 8 bytes of header length, a JSON header, the arrays; any safetensors reader opens
it. Arrays whose rows fill cache lines, as codes do, come first and so lie on them. It is cut into pages of 256 KiB,
each with a CRC-32; the sums are kept in the catalogue, not beside the bytes they vouch for. A page is summed when a
search first touches it and not again while the file is open: about 2 GB/s once, nothing afterwards, and a flipped bit
is an error, never an answer.

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

import json
import math
import os
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import GalleryCorrupt, GalleryError, quoted
from .mapping import ADVICE, map_file, open_regular

SEGMENTS = "segments"  # the folder of a gallery's files
MANIFEST = "shards"  # the file that makes a folder a gallery in shards, see sharded/manifest.py
PAGE = 256 << 10
MAX_LENGTH = 1 << 44  # bytes of one file
_MAX_HEADER = 1 << 16
_MAX_ARRAYS = 32
_ALIGN = 64
_TICK = 20_000_000  # nanoseconds; file systems take times from a clock that moves every 1 to 10 ms
_DTYPES = {"U8": np.uint8, "I64": np.int64, "F16": np.float16, "F32": np.float32}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class FileRecord:
    """What the catalogue keeps of a file: its name, its length and the sum of each page (little-endian uint32)."""

    name: str
    length: int
    sums: bytes


def write_arrays(folder: Path, name: str, arrays: Mapping[str, NDArray[Any]], mode: int | None = None) -> FileRecord:
    """Write FOLDER/NAME and make its bytes durable; making the name durable is left to the caller.

    mode: permission bits; by default those that the system gives.

    Raises:
        OSError: the disk is full, the folder is read-only, ...; nothing is left behind that a later open would use.
    """
    header: dict[str, object] = {}
    at = 0
    arrays = _aligned(arrays)
    for key, array in arrays.items():
        end = at + array.nbytes
        header[key] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN)
    path = folder / name
    try:
        with open(path, "xb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            paged = _Paged(file)
            paged.write(len(text).to_bytes(8, "little") + text)
            for array in arrays.values():
                paged.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return FileRecord(name, paged.length, paged.sums())


def _aligned(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays in an order in which each begins at a multiple of its items' size, as there are no gaps between."""

    def place(key: str) -> int:
        array = arrays[key]
        fills = array.itemsize * math.prod(array.shape[1:]) % _ALIGN == 0
        return -_ALIGN if fills else -array.itemsize

    return {key: arrays[key] for key in sorted(arrays, key=place)}


class _Paged:
    """Writes to a file and sums its pages on the way."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._sums: list[int] = []
        self._current = 0
        self.length = 0

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while len(view):
            piece = view[: PAGE - self.length % PAGE]
            self._file.write(piece)
            self._current = zlib.crc32(piece, self._current)
            self.length += len(piece)
            if self.length % PAGE == 0:
                self._sums.append(self._current)
                self._current = 0
            view = view[len(piece) :]

    def sums(self) -> bytes:
        tail = [self._current] if self.length % PAGE else []
        return np.array(self._sums + tail, "<u4").tobytes()


@dataclass(frozen=True)
class _Place:
    """Where an array lies in its file: bytes from `begin` to `end`, `stride` of them a row."""

    begin: int
    end: int
    rows: int
    row: tuple[int, ...]
    stride: int
    dtype: np.dtype[Any]


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
        self._places: dict[str, _Place] = {}
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
        if size > min(_MAX_HEADER, record.length - 8) or (8 + size) % _ALIGN:
            raise GalleryCorrupt(f"{self.path}: a header of {size} bytes does not fit the file")
        self._check(0, 8 + size)
        self._places = _places(bytes(self._bytes[8 : 8 + size]), 8 + size, record.length, self.path)

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
        if self._places[key].begin % _ALIGN:
            raise GalleryCorrupt(f"{self.path}: {key} must begin at a multiple of {_ALIGN} bytes")

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


def _places(text: bytes, start: int, length: int, path: Path) -> dict[str, _Place]:
    """Where the arrays lie, from a header; GalleryCorrupt where that is not inside of the file."""
    try:
        header = json.loads(text)
        if not isinstance(header, dict) or len(header) > _MAX_ARRAYS:
            raise ValueError(f"must be an object of at most {_MAX_ARRAYS} arrays")
        header.pop("__metadata__", None)
        return {key: _place(key, entry, start, length) for key, entry in header.items()}
    except (ValueError, RecursionError) as error:
        raise GalleryCorrupt(f"{path}: the header cannot be understood: {error}") from error


def _place(key: str, entry: Any, start: int, length: int) -> _Place:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{key} must have a dtype, a shape and data_offsets")
    name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(name, str) or name not in _DTYPES:
        raise ValueError(f"{key}: dtype must be one of {', '.join(_DTYPES)}")
    for numbers, count in ((shape, (1, 2)), (offsets, (2,))):
        if not isinstance(numbers, list) or len(numbers) not in count:
            raise ValueError(f"{key}: shape must have 1 or 2 numbers, data_offsets 2")
        if not all(type(number) is int and 0 <= number <= MAX_LENGTH for number in numbers):
            raise ValueError(f"{key}: numbers must be integers from 0 to {MAX_LENGTH}")
    dtype = np.dtype(_DTYPES[name])
    (rows, *row), (begin, end) = shape, offsets
    stride = dtype.itemsize * math.prod(row)
    if end - begin != rows * stride or start + end > length or begin % dtype.itemsize:
        raise ValueError(f"{key}: bytes {begin} to {end} do not hold a {name} array of shape {shape} in this file")
    return _Place(start + begin, start + end, rows, tuple(row), stride, dtype)
