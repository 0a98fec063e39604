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

from ..errors import GalleryCorrupt, GalleryError
from .bounds import no_axes
from .part import ArrayPart, Precision, Prefix, array_part
from .quantize import OFFSET

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
        sync_folder(folder)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return FileRecord(name, paged.length, paged.sums())


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def segment_arrays(part: ArrayPart) -> dict[str, NDArray[Any]]:
    """The arrays of a segment file; each begins where its values may, without gaps."""
    arrays: dict[str, NDArray[Any]] = {"codes": part.stored, "starts": part.starts}
    arrays |= {"scale": part.scale, "error": part.error, "norm": part.norm}
    if part.exact is not None:
        arrays["fine"] = part.exact
    return arrays


def fast_arrays(part: ArrayPart) -> dict[str, NDArray[Any]]:
    """The arrays of a segment's second file: what preparing search adds to a part."""
    if part.prefix is None or part.stored_prefix is None:
        raise LookupError("this part was not prepared")
    scale, norms = part.prefix.scale, part.prefix.norms
    return {"codes": part.stored_prefix, "scale": scale, "norms": norms, "blocks": part.blocks}


class Segment:
    """A `Part` on disk: one segment file and, once search was prepared, one more.

    basis, axes: of the gallery's preparation, where there is one.
    """

    def __init__(
        self,
        folder: Path,
        record: FileRecord,
        fast: FileRecord | None = None,
        basis: NDArray[np.floating] | None = None,
        axes: NDArray[np.floating] | None = None,
    ) -> None:
        self._file = _open(folder, record)
        self.starts = self._file.read("starts")
        self.scale = self._file.read("scale")
        self.error = self._file.read("error")
        self.norm = self._file.read("norm")
        self.prefix: Prefix | None = None
        self.axes = no_axes(0)
        self.blocks = np.zeros((len(self.scale), 0), np.float32)
        self._fast: MappedFile | None = None
        if fast is not None and basis is not None and axes is not None:
            self._fast = _open(folder, fast)
            self.prefix = Prefix(basis, self._fast.read("scale"), self._fast.read("norms"))
            self.axes, self.blocks = axes, self._fast.read("blocks")

    @property
    def has_fine(self) -> bool:
        """Whether the fine copy is kept."""
        return "fine" in self._file

    def codes(self, first: int, last: int) -> NDArray[np.uint8]:
        """Stored codes of rows first..last - 1."""
        return self._file.read("codes", int(self.starts[first]), int(self.starts[last]))

    def prefix_codes(self, first: int, last: int) -> NDArray[np.uint8]:
        """Stored codes of the rows' coordinates."""
        if self._fast is None:
            raise LookupError("this segment has no prefix")
        return self._fast.read("codes", int(self.starts[first]), int(self.starts[last]))

    def fine(self, row: int) -> NDArray[np.floating]:
        """The fine copy of one row."""
        return self._file.read("fine", int(self.starts[row]), int(self.starts[row + 1]))

    def vectors(self, first: int, last: int, dim: int) -> NDArray[np.float32]:
        """Vectors of rows first..last - 1 as float32, from the fine copy or else from the codes: [vectors, dim]."""
        begin, end = int(self.starts[first]), int(self.starts[last])
        if self.has_fine:
            fine: NDArray[np.float32] = self._file.read("fine", begin, end).astype(np.float32, copy=False)
            return fine
        scale = np.repeat(self.scale[first:last], np.diff(self.starts[first : last + 1]))
        codes: NDArray[np.float32] = self._file.read("codes", begin, end)[:, :dim].astype(np.float32)
        codes -= OFFSET
        codes *= scale[:, None]
        return codes

    def kept(self, name: str, live: NDArray[np.bool_]) -> NDArray[Any]:
        """An array's values for the living rows: per row, or per vector for `codes` and `fine`."""
        keep = np.repeat(live, np.diff(self.starts)) if name in ("codes", "fine") else live
        return self._file.read(name)[keep]

    def prepare(self, basis: NDArray[np.floating], axes: NDArray[np.floating]) -> dict[str, NDArray[Any]]:
        """The arrays of a second file for these axes, made a piece of rows at a time; see `fast_arrays`."""
        made: dict[str, list[NDArray[Any]]] = {}
        precision: Precision = "none"
        if self.has_fine:
            precision = "float16" if self._file.read("fine", 0, 0).dtype == np.float16 else "float32"
        for first in range(0, len(self.scale), 256):
            last = min(first + 256, len(self.scale))
            starts = self.starts[first : last + 1] - self.starts[first]
            part = array_part(self.vectors(first, last, len(basis)), starts, precision, basis, axes)
            for name, array in fast_arrays(part).items():
                made.setdefault(name, []).append(array)
        return {name: np.concatenate(pieces) for name, pieces in made.items()}

    def kept_fast(self, live: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
        """The living rows' part of the second file's arrays."""
        if self._fast is None:
            raise LookupError("this segment has no prefix")
        keep = np.repeat(live, np.diff(self.starts))
        return {name: self._fast.read(name)[keep if name == "codes" else live] for name in self._fast.names}

    def damaged(self) -> list[str]:
        """Every damaged page of its files, in words."""
        return self._file.damaged() + (self._fast.damaged() if self._fast else [])


def _open(folder: Path, record: FileRecord) -> MappedFile:
    try:
        return MappedFile(folder, record)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise GalleryError(f"{folder / record.name} cannot be read: {error.strerror}") from error
