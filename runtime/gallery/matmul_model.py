"""Two ONNX models, written byte by byte: `MatMulInteger(vectors, query, 128)`, alone or with a `ReduceMax`.

The runtime must not import `onnx`, and a model this small does not need it: an ONNX file is a protobuf message, and of
protobuf it takes two field kinds, varint and length-delimited (https://protobuf.dev/programming-guides/encoding/). The
field numbers are those of onnx.proto3, named beside each. The tests parse the bytes with `onnx` and check them.
"""

from __future__ import annotations

_UINT8, _INT8, _INT32 = 2, 3, 6  # TensorProto.DataType


def matmul_integer_model(reduced_axis: int | None = None) -> bytes:
    """ONNX bytes: vectors uint8 [N, L, S] with zero point 128, query int8 [S, Q] -> out int32, exact.

    reduced_axis: None for all products [N, L, Q]; 1 or 2 for their maximum along that axis.
    """
    products = "out" if reduced_axis is None else "products"
    node = _text(1, "vectors") + _text(1, "query") + _text(1, "zero")  # NodeProto.input
    node += _text(2, products) + _text(4, "MatMulInteger")  # .output, .op_type
    zero = _number(2, _UINT8) + _text(8, "zero") + _bytes(9, b"\x80")  # TensorProto.data_type, .name, .raw_data
    graph = _bytes(1, node)  # GraphProto.node
    shape = ["N", "L", "Q"]
    if reduced_axis is not None:
        del shape[reduced_axis]
        axes = _text(1, "axes") + _number(8, reduced_axis) + _number(20, 7)  # AttributeProto.name, .ints, .type = INTS
        keep = _text(1, "keepdims") + _number(3, 0) + _number(20, 2)  # .i, .type = INT
        node = _text(1, products) + _text(2, "out") + _text(4, "ReduceMax") + _bytes(5, axes) + _bytes(5, keep)
        graph += _bytes(1, node)
    graph += _text(2, "scan") + _bytes(5, zero)  # GraphProto.name, .initializer
    graph += _bytes(11, _value("vectors", _UINT8, "N", "L", "S")) + _bytes(
        11, _value("query", _INT8, "S", "Q")
    )  # .input
    graph += _bytes(12, _value("out", _INT32, *shape))  # .output
    opset = _text(1, "") + _number(2, 13)  # OperatorSetIdProto.domain, .version
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, opset)  # ModelProto.ir_version, .graph, .opset_import


def _value(name: str, dtype: int, *symbols: str) -> bytes:
    dims = b"".join(_bytes(1, _text(2, symbol)) for symbol in symbols)  # TensorShapeProto.dim, Dimension.dim_param
    tensor = _number(1, dtype) + _bytes(2, dims)  # TypeProto.Tensor.elem_type, .shape
    return _text(1, name) + _bytes(2, _bytes(1, tensor))  # ValueInfoProto.name, .type; TypeProto.tensor_type


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())
