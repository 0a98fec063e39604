"""Immutable files of named arrays, memory-mapped, whose bytes are checked before they are first used.

A file is laid out as safetensors: 8 bytes of header length, a JSON header, the arrays; any safetensors reader opens
it. The codes come first and so lie on cache lines. It is cut into pages of 256 KiB, each with a CRC-32; the sums are
kept in the catalogue, not beside the bytes they vouch for. A page is summed when a search first touches it and not
again while the file is open: about 2 GB/s once, nothing afterwards, and a flipped bit is an error, never an answer.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import GalleryCorrupt
from ...files import sync

SEGMENTS = "segments"  # the folder of a gallery's files
PAGE = 256 << 10
_ALIGN = 64
_DTYPES = {"U8": np.uint8, "I64": np.int64, "F16": np.float16, "F32": np.float32}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class FileRecord:
    """What the catalogue keeps of a file: its name, its length and the sum of each page (little-endian uint32)."""

    name: str
    length: int
    sums: bytes


def write_arrays(folder: Path, name: str, arrays: Mapping[str, NDArray[Any]]) -> FileRecord:
    """Write FOLDER/NAME and make it durable: when this returns, file and folder entry are on the disk.

    Raises:
        OSError: the disk is full, the folder is read-only, ...; nothing is left behind that a later open would use.
    """
    header: dict[str, object] = {}
    at = 0
    for key, array in arrays.items():
        end = at + array.nbytes
        header[key] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN)
    path = folder / name
    try:
        with open(path, "xb") as file:
            paged = _Paged(file)
            paged.write(len(text).to_bytes(8, "little") + text)
            for array in arrays.values():
                paged.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        sync(folder)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return FileRecord(name, paged.length, paged.sums())


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
    """Where an array lies in its file: bytes from `begin` on, `stride` of them a row."""

    begin: int
    rows: int
    row: tuple[int, ...]
    stride: int
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, start: int, entry: Mapping[str, Any]) -> _Place:
        (rows, *row), dtype = entry["shape"], np.dtype(_DTYPES[entry["dtype"]])
        return cls(start + entry["data_offsets"][0], rows, tuple(row), dtype.itemsize * math.prod(row), dtype)


class MappedFile:
    """A file of arrays, mapped; `read` checks the pages it touches for the first time.

    Raises:
        GalleryCorrupt: the file is missing, of another length, or its header is damaged.
    """

    def __init__(self, folder: Path, record: FileRecord) -> None:
        self.path = folder / record.name
        self._sums = np.frombuffer(record.sums, "<u4")
        self._checked = bytearray(len(self._sums))
        self._lock = threading.Lock()
        with open(self.path, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            if length != record.length:
                raise GalleryCorrupt(f"{self.path} has {length} bytes, {record.length} were committed")
            self._bytes = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        self._check(0, 8)
        size = int(self._bytes[:8].view("<u8")[0])
        self._check(0, 8 + size)
        self._start = 8 + size
        self._header: dict[str, Any] = json.loads(bytes(self._bytes[8 : self._start]))
        self._places = {key: _Place.of(self._start, entry) for key, entry in self._header.items()}

    def __contains__(self, key: str) -> bool:
        return key in self._places

    @property
    def names(self) -> tuple[str, ...]:
        """Of the arrays."""
        return tuple(self._places)

    def read(self, key: str, first: int = 0, last: int | None = None) -> NDArray[Any]:
        """Rows first..last - 1 of an array, mapped, once their bytes are known to be those that were committed."""
        place = self._places[key]
        stop = place.rows if last is None else last
        begin, end = place.begin + first * place.stride, place.begin + stop * place.stride
        self._check(begin, end)
        return self._bytes[begin:end].view(place.dtype).reshape(stop - first, *place.row)

    def damaged(self) -> list[str]:
        """Every damaged page, in words: which bytes, and which arrays lie there. Reads the whole file."""
        return [self._describe(page) for page in range(len(self._sums)) if not self._intact(page)]

    def _intact(self, page: int) -> bool:
        return zlib.crc32(self._bytes[page * PAGE : (page + 1) * PAGE].data) == int(self._sums[page])

    def _check(self, begin: int, end: int) -> None:
        first, last = begin // PAGE, -(-end // PAGE)
        if 0 not in self._checked[first:last]:
            return
        for page in range(first, last):
            if not self._checked[page]:
                if not self._intact(page):
                    raise GalleryCorrupt(
                        f"{self._describe(page)}: the bytes are not those that were committed. Restore the file, "
                        f"or see what is lost with: chan gallery verify {self.path.parent.parent}"
                    )
                self._checked[page] = 1

    def _describe(self, page: int) -> str:
        begin, end = page * PAGE, min((page + 1) * PAGE, len(self._bytes))
        inside = [
            key
            for key, entry in getattr(self, "_header", {}).items()
            if self._start + entry["data_offsets"][0] < end and self._start + entry["data_offsets"][1] > begin
        ]
        return f"{self.path} bytes {begin} to {end - 1} ({', '.join(inside) or 'header'})"
