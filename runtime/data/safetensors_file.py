"""Arrays in .safetensors files: mapped when read, and written piece by piece. Nothing but numpy is needed.

The library safetensors gives numpy no bfloat16, in which most late interaction models store their vectors, and writes
only what is in memory. The format is small: 8 bytes with the length of a JSON header, the header, and the data, which
tensors divide among themselves without a gap (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import InputError, reason_of
from ..files import atomic_file
from ..strict_json import decode, parse_json

_MAX_HEADER = 100_000_000  # the library's own limit
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


@dataclass(frozen=True)
class _Tensor:
    """A tensor as the header describes it."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


@dataclass(frozen=True, eq=False)
class BFloat16:
    """An array of bfloat16, which numpy lacks; what is read from it is float32 with the same values.

    Attributes:
        bits: uint16, the upper halves of the float32 numbers.
    """

    bits: NDArray[np.uint16]

    dtype = "bfloat16"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.bits.shape

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, place: Any) -> NDArray[np.float32]:
        wide: NDArray[np.uint32] = self.bits[place].astype(np.uint32) << 16
        return wide.view(np.float32)


def map_safetensors(file: Path) -> dict[str, NDArray[Any] | BFloat16]:
    """The arrays of a file by name, mapped, in the order of their data.

    Raises:
        InputError: the file cannot be read, or its header does not describe exactly the bytes that follow it.
    """
    try:
        size = file.stat().st_size
        with open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(_MAX_HEADER, size - 8):
                raise InputError(f"its header claims {length:,} bytes, and it has {size - 8:,}")
            header = parse_json(stream.read(length).decode())
        if not isinstance(header, dict):
            raise InputError("its header must be a JSON object")
        header.pop("__metadata__", None)
        tensors = {name: decode(_Tensor, raw, repr(name)) for name, raw in header.items()}
        end = 0
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
            _check(name, tensor, end)
            end = tensor.data_offsets[1]
        if end != size - 8 - length:
            raise InputError(f"its tensors take {end:,} bytes, and {size - 8 - length:,} follow the header")
    except (OSError, struct.error, UnicodeDecodeError, InputError) as error:
        reason = "it is shorter than its header" if isinstance(error, struct.error) else reason_of(error)
        raise InputError(f"{file} cannot be read as safetensors: {reason}") from error
    data = np.memmap(file, np.uint8, "r") if size else np.zeros(0, np.uint8)
    arrays: dict[str, NDArray[Any] | BFloat16] = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        begin, end = tensor.data_offsets
        array = data[8 + length + begin : 8 + length + end].view(_DTYPES[tensor.dtype]).reshape(tensor.shape)
        arrays[name] = BFloat16(array) if tensor.dtype == "BF16" else array
    return arrays


def _check(name: str, tensor: _Tensor, end: int) -> None:
    if tensor.dtype not in _DTYPES:
        raise InputError(f"the type of {name!r} must be one of {', '.join(_DTYPES)}, got {tensor.dtype}")
    begin, stop = tensor.data_offsets
    size = prod(tensor.shape) * np.dtype(_DTYPES[tensor.dtype]).itemsize
    if min((*tensor.shape, 0)) < 0 or begin != end or stop - begin != size:
        raise InputError(
            f"{name!r} of shape {list(tensor.shape)} takes {size:,} bytes from {end:,} on, and the header gives it "
            f"{begin:,} to {stop:,}"
        )


@dataclass(frozen=True)
class Content:
    """An array to write.

    Attributes:
        dtype: of its numbers.
        shape: of the whole array.
        pieces: its rows, in order; read once.
    """

    dtype: DTypeLike
    shape: Sequence[int]
    pieces: Iterable[NDArray[Any]]


def write_safetensors(file: Path, arrays: Mapping[str, Content], metadata: Mapping[str, str]) -> None:
    """Write a file, one piece of an array after the other.

    Raises:
        OSError: the file cannot be written; what was there before stays.
    """
    names = {np.dtype(text): name for name, text in _DTYPES.items() if name != "BF16"}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, content in arrays.items():
        dtype = np.dtype(content.dtype)
        begin, end = end, end + prod(content.shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": list(content.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the data are aligned
    with atomic_file(file) as beside, open(beside, "wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for content in arrays.values():
            for piece in content.pieces:
                stream.write(np.ascontiguousarray(piece, content.dtype).data)
