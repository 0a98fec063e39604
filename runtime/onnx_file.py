"""Whether an ONNX file keeps weights outside itself, read from its bytes without the `onnx` library.

A bundle's hash of a graph covers one file. Weights in another file could be changed without notice, so a graph that
has such ("external data") is refused before anything runs it.

Only fields that lead to a TensorProto are entered (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3). All others
are skipped by their length, the bytes of the weights included.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

from .errors import BundleError
from .onnx_bytes import read_fields

_MAX_DEPTH = 32  # graphs within graphs
# The fields of each message that lead on, by number.
_INSIDE: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "Tensor": {},
}
_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 8, 13, 14  # of TensorProto


def refuse_external_data(path: Path) -> None:
    """BundleError if an ONNX file keeps a tensor in another file, or is not an ONNX file at all."""
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        outside = next(_external_tensors(memoryview(data), "Model", 0), None)
    except ValueError as error:  # an empty file cannot be mapped
        raise BundleError(f"{path} is not a readable ONNX file: {error}") from error
    if outside is not None:
        raise BundleError(
            f"{path} keeps the tensor {outside!r} in another file, which the bundle's hash does not cover: a bundle's "
            "graphs hold their own weights"
        )


def _external_tensors(part: memoryview, message: str, depth: int) -> Iterator[str]:
    """Names of the tensors of a message that lie in other files."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {_MAX_DEPTH} levels")
    name, external = "", False
    for number, value in read_fields(part):
        if message == "Tensor":
            if number == _NAME and not isinstance(value, int):
                name = bytes(value[:80]).decode(errors="replace")
            external |= number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)
        elif number in _INSIDE[message] and not isinstance(value, int):
            yield from _external_tensors(value, _INSIDE[message][number], depth + 1)
    if external:
        yield name
