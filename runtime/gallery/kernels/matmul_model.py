"""ONNX models of the scan, written byte by byte: integer products of a query's planes, combined and reduced.

The runtime must not import `onnx`, and a model this small does not need it: an ONNX file is a protobuf message, and
of protobuf it takes two field kinds, varint and length-delimited (https://protobuf.dev/programming-guides/encoding/).
Field numbers are those of onnx.proto3, named beside each. The tests parse the bytes with `onnx` and check them.
"""

from __future__ import annotations

import struct

_FLOAT, _UINT8, _INT8 = 1, 2, 3  # TensorProto.DataType


def scan_model(reduced_axis: int | None, weight: float | None) -> bytes:
    """ONNX bytes: vectors uint8 [N, L, S] with zero point 128, query int8 [S, P] -> out float32.

    Args:
        reduced_axis: None for all products [N, L, Q]; 1 or 2 for their maximum along that axis.
        weight: the query has two planes: its first Q columns are the high one, the others the low one, and a product is
            `weight * high + low`. None where it has one.
    """
    products = "out" if reduced_axis is None else "products"
    nodes = [_node("MatMulInteger", ["vectors", "query", "zero"], ["sums"])]
    if weight is None:
        nodes.append(_node("Cast", ["sums"], [products], to=_FLOAT))
    else:
        nodes += [
            _node("Split", ["sums"], ["high_int", "low_int"], axis=2),
            _node("Cast", ["high_int"], ["high"], to=_FLOAT),
            _node("Cast", ["low_int"], ["low"], to=_FLOAT),
            _node("Mul", ["high", "weight"], ["weighted"]),
            _node("Add", ["weighted", "low"], [products]),
        ]
    shape = ["N", "L", "Q"]
    if reduced_axis is not None:
        del shape[reduced_axis]
        nodes.append(_node("ReduceMax", [products], ["out"], axes=[reduced_axis], keepdims=0))
    zero = _number(2, _UINT8) + _text(8, "zero") + _bytes(9, b"\x80")  # TensorProto.data_type, .name, .raw_data
    graph = b"".join(_bytes(1, node) for node in nodes) + _text(2, "scan")  # GraphProto.node, .name
    graph += _bytes(5, zero)  # .initializer
    if weight is not None:
        graph += _bytes(5, _number(2, _FLOAT) + _text(8, "weight") + _bytes(9, struct.pack("<f", weight)))
    graph += _bytes(11, _value("vectors", _UINT8, "N", "L", "S")) + _bytes(
        11, _value("query", _INT8, "S", "P")
    )  # .input
    graph += _bytes(12, _value("out", _FLOAT, *shape))  # .output
    opset = _text(1, "") + _number(2, 13)  # OperatorSetIdProto.domain, .version
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, opset)  # ModelProto.ir_version, .graph, .opset_import


def _node(operator: str, inputs: list[str], outputs: list[str], **attributes: int | list[int]) -> bytes:
    node = b"".join(_text(1, name) for name in inputs) + b"".join(_text(2, name) for name in outputs)
    node += _text(4, operator)  # NodeProto.input, .output, .op_type
    for name, value in attributes.items():  # .attribute; AttributeProto.name, .i or .ints, .type
        if isinstance(value, list):
            kind = b"".join(_number(8, item) for item in value) + _number(20, 7)
        else:
            kind = _number(3, value) + _number(20, 2)
        node += _bytes(5, _text(1, name) + kind)
    return node


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
