"""How a file of named arrays is laid out: written in pages that are summed, and understood from its header.

It is laid out as safetensors: 8 bytes of header length, a JSON header, the arrays; any safetensors reader opens it.
Arrays whose rows fill cache lines, as codes do, come first and so lie on them. It is cut into pages of 256 KiB, each
with a CRC-32; the sums are kept in the catalogue, not beside the bytes they vouch for.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import GalleryCorrupt

PAGE = 256 << 10
MAX_LENGTH = 1 << 44  # bytes of one file
MAX_HEADER = 1 << 16
ALIGN = 64
_MAX_ARRAYS = 32
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
    text += b" " * (-(8 + len(text)) % ALIGN)
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
        fills = array.itemsize * math.prod(array.shape[1:]) % ALIGN == 0
        return -ALIGN if fills else -array.itemsize

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
class Place:
    """Where an array lies in its file: bytes from `begin` to `end`, `stride` of them a row."""

    begin: int
    end: int
    rows: int
    row: tuple[int, ...]
    stride: int
    dtype: np.dtype[Any]


def read_places(text: bytes, start: int, length: int, path: Path) -> dict[str, Place]:
    """Where the arrays lie, from a header; GalleryCorrupt where that is not inside of the file."""
    try:
        header = json.loads(text)
        if not isinstance(header, dict) or len(header) > _MAX_ARRAYS:
            raise ValueError(f"must be an object of at most {_MAX_ARRAYS} arrays")
        header.pop("__metadata__", None)
        return {key: _place(key, entry, start, length) for key, entry in header.items()}
    except (ValueError, RecursionError) as error:
        raise GalleryCorrupt(f"{path}: the header cannot be understood: {error}") from error


def _place(key: str, entry: Any, start: int, length: int) -> Place:
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
    return Place(start + begin, start + end, rows, tuple(row), stride, dtype)
