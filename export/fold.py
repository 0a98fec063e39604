"""Fold each BatchNormalization of an ONNX graph into the Conv in front of it.

`scale * (conv(x) - mean) / sqrt(variance + epsilon) + shift` is a Conv with other weights and another bias. torch's
exporter folds what it traces. Graphs of others may keep the two apart, and then neither onnxruntime nor TensorRT could
join them once there is a quantization between the two.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from ..calibration.qdq import drop_unused_initializers

_EPSILON = 1e-5  # ONNX's default


def fold_batch_norms(model: onnx.ModelProto) -> None:
    """Fold, in place, every BatchNormalization with constant operands that alone reads what a Conv makes."""
    graph = model.graph
    constants = {item.name: item for item in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input) + Counter(end.name for end in graph.output)
    convolutions: dict[str, onnx.NodeProto] = {}
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        before = convolutions.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        if before is not None and readers[before.output[0]] == 1 and _is_constant(node, constants):
            made = _folded(before, node, constants)
            graph.initializer.extend(made)
            constants |= {item.name: item for item in made}
            before.input[:] = [before.input[0], *(item.name for item in made)]
            before.output[:] = node.output[:1]
            convolutions[node.output[0]] = before
            continue
        if node.op_type == "Conv" and constants.keys() >= set(filter(None, node.input[1:])):
            convolutions[node.output[0]] = node
        kept.append(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused_initializers(model)


def _is_constant(norm: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    """Whether it computes with constants, not with the mean and the variance of its input."""
    trains = any(attribute.name == "training_mode" and attribute.i for attribute in norm.attribute)
    return not trains and len(norm.output) == 1 and constants.keys() >= set(norm.input[1:])


def _folded(
    convolution: onnx.NodeProto, norm: onnx.NodeProto, constants: dict[str, onnx.TensorProto]
) -> list[onnx.TensorProto]:
    """The weight and the bias of both together."""

    def value(name: str) -> NDArray[np.float64]:
        return numpy_helper.to_array(constants[name]).astype(np.float64)

    scale, shift, mean, variance = map(value, norm.input[1:5])
    epsilon = next((attribute.f for attribute in norm.attribute if attribute.name == "epsilon"), _EPSILON)
    factor = scale / np.sqrt(variance + epsilon)
    weight = value(convolution.input[1])
    bias = value(convolution.input[2]) if len(convolution.input) > 2 and convolution.input[2] else 0.0
    parts = {"weight": weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), "bias": (bias - mean) * factor + shift}
    dtype = numpy_helper.to_array(constants[convolution.input[1]]).dtype
    return [numpy_helper.from_array(array.astype(dtype), f"{norm.output[0]}/{part}") for part, array in parts.items()]
