"""A new .npy file of float32 that is written through a map, on a disk that may become full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..files import reserve


def new_npy(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[Any]]:
    """Write an .npy file of zeros and map it for writing.

    numpy's `open_memmap(path, "w+")` takes no room on the disk, so that a write to the map ends the process with SIGBUS
    when the disk is full.

    Raises:
        OSError: the disk has no room for the array; the error names PATH.
    """
    described = np.dtype(np.float32)
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(described), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        offset = file.tell()
    reserve(path, offset + described.itemsize * int(np.prod(shape, dtype=np.int64)))
    array: np.memmap[Any, np.dtype[Any]] = np.lib.format.open_memmap(path, "r+")
    return array
