"""Ranges that are known without any sample, because of the operator or the constant that makes a tensor.

A range from samples holds for these samples alone: one word louder than all calibration captions, and its embedding is
clipped (on such words a least cosine of 0.92 was seen instead of 1.00). Where a bound is known it is used instead:

    rows of a constant table    the smallest and the largest value of the table
    hidden states of a GRU      [-1, 1]: each is a mean of tanh values and of the state before it, from 0 on
    Softmax                     [0, 1]
    unit vectors                [-1, 1], and their rows, as inputs of the alignment graphs
"""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import numpy_helper

# operators whose output holds values of their first input and nothing else
_MOVES = ("Transpose", "ReverseSequence", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Slice")
Bounds = tuple[float, float]


def known_bounds(model: onnx.ModelProto, unit_inputs: Collection[str] = ()) -> dict[str, Bounds]:
    """Return the bounds (low, high) of the tensors of a float32 graph that have them, by tensor name.

    Args:
        model: the graph, its nodes in topological order.
        unit_inputs: inputs of the graph whose rows are unit vectors or zeros.
    """
    tables = {item.name: item for item in model.graph.initializer}
    found: dict[str, Bounds] = dict.fromkeys(unit_inputs, (-1.0, 1.0))
    for node in model.graph.node:
        if node.op_type == "Gather" and node.input[0] in tables:
            values = numpy_helper.to_array(tables[node.input[0]])
            if values.dtype.kind == "f" and values.size:
                found[node.output[0]] = (float(values.min()), float(values.max()))
        elif node.op_type == "GRU" and not any(node.input[5:]) and _has_tanh(node):
            found[node.output[0]] = (-1.0, 1.0)
        elif node.op_type == "Softmax":
            found[node.output[0]] = (0.0, 1.0)
        elif node.op_type in _MOVES and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def _has_tanh(node: onnx.NodeProto) -> bool:
    """Return whether a GRU has ONNX's default activations, Sigmoid and Tanh."""
    return not any(attribute.name == "activations" for attribute in node.attribute)
