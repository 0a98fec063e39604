"""Embeddings of other models in a file of `torch.save`, read by `torch_file`: nothing in it is executed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..runtime.data.vector_arrays import rows_of_members
from ..runtime.data.vector_file import StoredRow, VectorFile
from ..runtime.errors import InputError
from .torch_file import check_tensor, read_torch_file


def open_torch_vectors(file: Path) -> VectorFile:
    """The rows of a .pt file, which is held in memory as a whole.

    Args:
        file: a tensor [N, L, D]; a list of tensors [L, D], one a row; or a dictionary with `embeddings` and what may
            stand beside, or with a tensor [L, D] for each id, as in a .safetensors file. In a list of tensors of one
            length, vectors of zeros are padding.

    Raises:
        CheckpointError: the file is damaged, was not written by `torch.save`, or holds more than data.
        InputError: it holds something else, or a tensor [L, D] that may be one row or L of them.
    """
    found: object = read_torch_file(file)
    if isinstance(found, Tensor):
        array = _array("its tensor", found, file)
        if array.ndim not in (2, 3):
            raise InputError(f"{file}: its tensor must be [N, L, D], got {array.dtype} {list(array.shape)}")
        return rows_of_members(file, {"its tensor": array})
    if isinstance(found, Mapping):
        members: dict[str, NDArray[Any]] = {}
        for name, value in found.items():
            if (text := str(name)) in members:
                raise InputError(f"{file}: two keys of its dictionary read {text!r}: give each its own text")
            members[text] = _member(text, value, file)
        return rows_of_members(file, members)
    if not isinstance(found, list | tuple) or not found:
        wanted = "a tensor, a list of tensors [L, D], or a dictionary of tensors"
        raise InputError(f"{file} must hold {wanted}, got {type(found).__name__}")
    rows = [_array(f"tensor {number}", tensor, file) for number, tensor in enumerate(found)]
    for number, row in enumerate(rows):
        if row.ndim != 2 or row.dtype.kind != "f":
            got = f"{row.dtype} {list(row.shape)}{'; join batches with torch.cat' if row.ndim == 3 else ''}"
            raise InputError(f"{file}: tensor {number} must be floating-point numbers [L, D], got {got}")

    def read() -> Iterator[StoredRow]:
        return (StoredRow(row) for row in rows)

    one_length = len({len(row) for row in rows}) == 1
    return VectorFile(file, len(rows), ", ".join(sorted({str(row.dtype) for row in rows})), None, one_length, read)


def _member(name: str, value: object, file: Path) -> NDArray[Any]:
    """An array of a dictionary; ids and lengths may be lists."""
    if isinstance(value, list) and value and all(type(item) in (str, int) for item in value):
        return np.asarray(value)
    return _array(name, value, file)


def _array(name: str, value: object, file: Path) -> NDArray[Any]:
    tensor = check_tensor(name, value, file)
    array: NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array
