"""ONNX files byte by byte, for a runtime that must not import `onnx`: small models are written, large ones are read.

An ONNX file is a protobuf message, and of protobuf it takes two field kinds to write, varint and length-delimited
(https://protobuf.dev/programming-guides/encoding/). Field numbers are those of onnx.proto3, named beside each. Tests
compare both directions with `onnx`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

FLOAT, UINT8, INT8, INT32 = 1, 2, 3, 6  # TensorProto.DataType
MAX_DEPTH = 16  # of graphs inside graphs; the deepest of ours has 1

# Operator -> the inputs that hold a weight and its zero point, for every integer product of onnxruntime on the CPU, and
# for what makes floats of integers: onnxruntime fuses it with the product behind it.
WEIGHT_INPUTS = {
    "DequantizeLinear": (0, 2),
    "MatMulInteger": (1, 3),
    "MatMulIntegerToFloat": (1, 5),
    "DynamicQuantizeMatMul": (1, 3),
    "ConvInteger": (1, 3),
    "QLinearMatMul": (3, 5),
    "QLinearConv": (3, 5),
    "QGemm": (3, 5),
    "QAttention": (1, 7),
}


def model(nodes: Sequence[bytes], initializers: Sequence[bytes], inputs: Sequence[bytes], output: bytes) -> bytes:
    """A model of opset 13 from nodes, initializers and its inputs and output, as the functions below write them."""
    graph = b"".join(field(1, item) for item in nodes) + text(2, "graph")  # GraphProto.node, .name
    graph += b"".join(field(5, item) for item in initializers)  # .initializer
    graph += b"".join(field(11, item) for item in inputs) + field(12, output)  # .input, .output
    opset = text(1, "") + number(2, 13)  # OperatorSetIdProto.domain, .version
    return number(1, 8) + field(7, graph) + field(8, opset)  # ModelProto.ir_version, .graph, .opset_import


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: int | list[int]) -> bytes:
    """A NodeProto."""
    written = b"".join(text(1, name) for name in inputs) + b"".join(text(2, name) for name in outputs)
    written += text(4, operator)  # NodeProto.input, .output, .op_type
    for name, value in attributes.items():  # .attribute; AttributeProto.name, .i or .ints, .type
        if isinstance(value, list):
            kind = b"".join(number(8, item) for item in value) + number(20, 7)
        else:
            kind = number(3, value) + number(20, 2)
        written += field(5, text(1, name) + kind)
    return written


def value(name: str, dtype: int, *shape: str | int) -> bytes:
    """A ValueInfoProto of a tensor; a symbolic dimension is a string."""
    # TensorShapeProto.dim; Dimension.dim_value or .dim_param
    dims = b"".join(field(1, number(1, axis) if isinstance(axis, int) else text(2, axis)) for axis in shape)
    tensor = number(1, dtype) + field(2, dims)  # TypeProto.Tensor.elem_type, .shape
    return text(1, name) + field(2, field(1, tensor))  # ValueInfoProto.name, .type; TypeProto.tensor_type


def constant(name: str, dtype: int, shape: Sequence[int], raw: bytes) -> bytes:
    """A TensorProto of little-endian bytes."""
    dims = b"".join(number(1, size) for size in shape)
    return dims + number(2, dtype) + text(8, name) + field(9, raw)  # TensorProto.dims, .data_type, .name, .raw_data


def number(key: int, value: int) -> bytes:
    """A varint field."""
    return _varint(key << 3) + _varint(value)


def field(key: int, value: bytes) -> bytes:
    """A length-delimited field."""
    return _varint(key << 3 | 2) + _varint(len(value)) + value


def text(key: int, value: str) -> bytes:
    """A field of UTF-8 text."""
    return field(key, value.encode())


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


@dataclass(frozen=True)
class IntegerProduct:
    """An operator on integers, or one that makes floats of them for the operator behind it.

    Attributes:
        operator: its type.
        output: the tensor it makes.
        local: whether its weight is a constant of the very graph that the operator is in (not computed, and not taken
            from the graph around the body of a Scan, Loop or If) and has its zero point given. A DequantizeLinear of a
            computed tensor is local where the tensor is computed in the same graph.
    """

    operator: str
    output: str
    local: bool


def read_integer_products(serialized: memoryview) -> list[IntegerProduct]:
    """The integer products of a serialized model, those inside bodies of Scan, Loop and If among them.

    Raises:
        ValueError: the bytes are no ONNX model.
    """
    return [
        product
        for key, graph in read_fields(serialized)
        if key == 7 and isinstance(graph, memoryview)
        for product in _read_graph(graph, 1)
    ]


def _read_graph(graph: memoryview, depth: int) -> Iterator[IntegerProduct]:
    if depth > MAX_DEPTH:
        raise ValueError(f"graphs must be nested at most {MAX_DEPTH} deep")
    nodes = [Node(part) for key, part in read_fields(graph) if key == 1 and isinstance(part, memoryview)]
    constants = {
        read_string(name)
        for key, tensor in read_fields(graph)
        if key == 5 and isinstance(tensor, memoryview)
        for inner, name in read_fields(tensor)
        if inner == 8
    }
    constants |= {name for node in nodes if node.operator == "Constant" for name in node.outputs}
    made = {name for node in nodes for name in node.outputs}
    for node in nodes:
        output = node.outputs[0] if node.outputs else ""
        if node.operator in WEIGHT_INPUTS:
            weight, zero_point = (
                node.inputs[index] if index < len(node.inputs) else "" for index in WEIGHT_INPUTS[node.operator]
            )
            local = zero_point != "" and weight in constants
            if node.operator == "DequantizeLinear":  # an activation's, where it is computed
                local |= weight in made
            yield IntegerProduct(node.operator, output, local)
        for body in node.bodies:
            yield from _read_graph(body, depth + 1)


class Node:
    """A NodeProto, read as far as its names and the graphs inside it.

    Attributes:
        inputs, outputs: names of tensors.
        operator: its type.
        bodies: graphs of a Scan, Loop or If.
    """

    def __init__(self, part: memoryview) -> None:
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.operator = ""
        self.bodies: list[memoryview] = []
        for key, found in read_fields(part):
            if key == 1:
                self.inputs.append(read_string(found))
            elif key == 2:
                self.outputs.append(read_string(found))
            elif key == 4:
                self.operator = read_string(found)
            elif key == 5 and isinstance(found, memoryview):  # AttributeProto.g, .graphs
                self.bodies += [
                    body for inner, body in read_fields(found) if inner in (6, 11) and isinstance(body, memoryview)
                ]


def read_string(found: memoryview | int) -> str:
    """Text of a field; ValueError where it holds none."""
    if isinstance(found, int):
        raise ValueError("a name must be text")
    return bytes(found).decode()


def read_fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """The fields of a message: number, and the bytes or the integer of each."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        kind = tag & 7
        if kind == 0:
            found, at = _read_varint(message, at)
            yield tag >> 3, found
            continue
        if kind == 2:
            size, at = _read_varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"fields of kind {kind} are not part of an ONNX model")
        if at + size > len(message):
            raise ValueError("a field is longer than its message")
        yield tag >> 3, message[at : at + size]
        at += size


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("a message ends within a number")
        byte = message[at]
        at += 1
        result |= (byte & 127) << shift
        if byte < 128:
            return result, at
    raise ValueError("a number must have at most 10 bytes")
