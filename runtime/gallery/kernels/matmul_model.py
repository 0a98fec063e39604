"""ONNX models of the scan: integer products of a query's planes, combined and reduced."""

from __future__ import annotations

import struct

from ...onnx_bytes import FLOAT, INT8, UINT8, constant, model, node, value


def scan_model(reduced_axis: int | None, weight: float | None) -> bytes:
    """ONNX bytes: vectors uint8 [N, L, S] with zero point 128, query int8 [S, P] -> out float32.

    Args:
        reduced_axis: None for all products [N, L, Q]; 1 or 2 for their maximum along that axis.
        weight: the query has two planes: its first Q columns are the high one, the others the low one, and a product is
            `weight * high + low`. None where it has one.
    """
    products = "out" if reduced_axis is None else "products"
    nodes = [node("MatMulInteger", ["vectors", "query", "zero"], ["sums"])]
    if weight is None:
        nodes.append(node("Cast", ["sums"], [products], to=FLOAT))
    else:
        nodes += [
            node("Split", ["sums"], ["high_int", "low_int"], axis=2),
            node("Cast", ["high_int"], ["high"], to=FLOAT),
            node("Cast", ["low_int"], ["low"], to=FLOAT),
            node("Mul", ["high", "weight"], ["weighted"]),
            node("Add", ["weighted", "low"], [products]),
        ]
    shape = ["N", "L", "Q"]
    if reduced_axis is not None:
        del shape[reduced_axis]
        nodes.append(node("ReduceMax", [products], ["out"], axes=[reduced_axis], keepdims=0))
    constants = [constant("zero", UINT8, (), b"\x80")]
    if weight is not None:
        constants.append(constant("weight", FLOAT, (), struct.pack("<f", weight)))
    inputs = [value("vectors", UINT8, "N", "L", "S"), value("query", INT8, "S", "P")]
    return model(nodes, constants, inputs, value("out", FLOAT, *shape))
