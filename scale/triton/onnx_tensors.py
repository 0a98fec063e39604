"""The tensors of an ONNX file, read from its bytes without the `onnx` library.

https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3: ModelProto.graph, GraphProto.input and .output, ValueInfoProto,
TypeProto.Tensor, TensorShapeProto.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from ...runtime.contract import TensorSpec
from ...runtime.errors import InputError
from ...runtime.onnx_bytes import read_fields, read_string

# TensorProto.DataType -> the name of the type in NumPy.
_TYPES = {1: "float32", 2: "uint8", 6: "int32", 7: "int64", 9: "bool", 10: "float16"}
_INPUT, _OUTPUT = 11, 12  # of GraphProto


def read_tensors(path: Path) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """The inputs and outputs of an ONNX file; an axis that may have any size has the name that the file gives it.

    Raises:
        InputError: it is no readable ONNX file, or has a tensor of a type that bundles do not have.
    """
    try:
        with open(path, "rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        graph = _one(data, 7)
        return tuple([_tensor(value) for value in _all(graph, key)] for key in (_INPUT, _OUTPUT))  # type: ignore[return-value]
    except (ValueError, KeyError) as error:
        raise InputError(f"{path} is not a readable ONNX file: {error}") from error


def _tensor(value: memoryview) -> TensorSpec:
    tensor = _one(_one(value, 2), 1)
    kind = next(found for key, found in read_fields(tensor) if key == 1)
    axes = [_axis(axis) for axis in _all(_one(tensor, 2), 1)]
    return TensorSpec(read_string(_one(value, 1)), _TYPES[int(kind)], tuple(axes))


def _axis(axis: memoryview) -> int | str:
    for key, found in read_fields(axis):
        if key == 1 and isinstance(found, int):
            return found
        if key == 2:
            return read_string(found)
    return "?"


def _all(message: memoryview, field: int) -> list[memoryview]:
    return [found for key, found in read_fields(message) if key == field and isinstance(found, memoryview)]


def _one(message: memoryview, field: int) -> memoryview:
    found = _all(message, field)
    if not found:
        raise ValueError(f"a message lacks its field {field}")
    return found[-1]
