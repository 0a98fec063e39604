"""An int8 GRU for onnxruntime on x86: the recurrence as a Scan whose one product per step is uint8 x int8.

At batch 1 a float32 GRU spends its time on reading its recurrent weights once per word (1024-d, two directions: 25 MB).
Int8 weights are a quarter of that and stay in the cache. Measured on 2 cores of a Zen 4 (1024-d, 300-d words, both
directions; least of 16 runs, milliseconds; error: least cosine of a hidden state against torch):

                                           MatMul-           DynamicQuantize-   MatMulNBits,
    batch x words   torch   ort's GRU      IntegerToFloat    MatMul             8 bits, block 128
    1 x 12          10.6    4.8            2.8               2.5                2.1
    64 x 12         118     102            29                34                 45
    least cosine    1       1              0.9998            0.99999            0.99999

The product with a constant scale is the one used: DynamicQuantizeMatMul takes its scale over the whole batch, so a
caption's embedding would depend on its neighbors, and MatMulNBits is slower at batch 64. One scale suffices: a hidden
state is a mean of tanh values, so it is bounded by 1. TensorRT keeps the float GRU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..runtime.errors import InputError
from .qdq import drop_unused_initializers, quantize_weight
from .ranges import TensorRange

MICROSOFT = "com.microsoft"
Constant = Callable[[str, np.ndarray], str]  # adds one to a graph, and returns its full name


def find_grus(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the GRU nodes of a graph, in graph order."""
    return [node for node in model.graph.node if node.op_type == "GRU"]


def quantize_gru(model: onnx.ModelProto, node_name: str, ranges: Mapping[str, TensorRange]) -> None:
    """Replace, in place, one GRU node by an input projection (a plain MatMul) and an int8 Scan.

    Before: a single-direction forward GRU with linear_before_reset=1, constant weights and no initial state, whose
    first output is the only one used; `ranges` covers it. After: the same tensor, float32 [W, 1, B, D], from int8
    products. Steps past a caption's length are computed, not zeroed: as with ReverseSequence, the graph masks them.

    The projection is a MatMul named `NODE/input`, which `qdq.quantize` quantizes like any other.

    Raises:
        InputError: the node is missing, has another form, or has no range.
    """
    node = next((node for node in find_grus(model) if node.name == node_name), None)
    if node is None:
        raise InputError(f"this graph has no GRU named {node_name!r}; it has {[n.name for n in find_grus(model)]}")
    weights = _weights(model, node)
    output = node.output[0]
    if output not in ranges:
        raise InputError(
            f"no calibrated range for {output}, the hidden states of {node.name}: run chan calibrate again"
        )
    constant = partial(_add_constant, model, node.name)
    body = _step(f"{node.name}/step", weights, ranges[output].amax, constant)
    replacement = _replacement(node, weights, body, constant)
    nodes = [new for old in model.graph.node for new in (replacement if old.name == node_name else [old])]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    drop_unused_initializers(model)
    if MICROSOFT not in {item.domain for item in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))


def _add_constant(model: onnx.ModelProto, prefix: str, name: str, value: np.ndarray) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), f"{prefix}/{name}"))
    return f"{prefix}/{name}"


def _step(name: str, weights: _Weights, amax: float, constant: Constant) -> onnx.GraphProto:
    """One word of each caption: the gates from the product with the last hidden state, and the next one.

    Args:
        name: of the body.
        weights: of the GRU.
        amax: the largest absolute value of a hidden state.
        constant: adds one to the graph around the body.
    """
    hidden = weights.recurrent.shape[0]
    step = _Step(name)
    recurrent, recurrent_scale = quantize_weight(weights.recurrent, axis=1)
    # [B, 3D] <- [B, D] x [D, 3D]; the hidden state's zero point 128 makes uint8 of a symmetric range
    product_inputs = [
        "q",
        step.constant("recurrent_int8", recurrent),
        constant("hidden/scale", np.array(amax / 127, np.float32)),
        constant("recurrent/scale", recurrent_scale),
        constant("hidden/zero_point", np.array(128, np.uint8)),
        step.constant("recurrent_zero_point", np.array(0, np.int8)),
        constant("recurrent/bias", weights.recurrent_bias),
    ]
    gates = constant("gates", np.array([2 * hidden, hidden], np.int64))
    step.add("QuantizeLinear", ["h", product_inputs[2], product_inputs[4]], ["q"])
    step.add("MatMulIntegerToFloat", product_inputs, ["g"], domain=MICROSOFT)
    step.add("Split", ["g", gates], ["g_zr", "g_n"], axis=-1)
    step.add("Split", ["x", gates], ["x_zr", "x_n"], axis=-1)
    step.add("Add", ["g_zr", "x_zr"], ["s_zr"])
    step.add("Sigmoid", ["s_zr"], ["zr"])
    step.add("Split", ["zr"], ["z", "r"], axis=-1, num_outputs=2)
    step.add("Mul", ["r", "g_n"], ["r_n"])
    step.add("Add", ["r_n", "x_n"], ["s_n"])
    step.add("Tanh", ["s_n"], ["n"])
    # h' = (1 - z) n + z h = n + z (h - n)
    step.add("Sub", ["h", "n"], ["d"])
    step.add("Mul", ["d", "z"], ["z_d"])
    step.add("Add", ["z_d", "n"], ["h_next"])
    step.add("Identity", ["h_next"], ["y"])
    return step.graph({"h": hidden, "x": 3 * hidden}, {"h_next": hidden, "y": hidden})


def _replacement(
    node: onnx.NodeProto, weights: _Weights, body: onnx.GraphProto, constant: Constant
) -> list[onnx.NodeProto]:
    """The nodes in place of a GRU: the projection of its input, a hidden state of zeros, and the Scan of `body`."""
    prefix, hidden = node.name, weights.recurrent.shape[0]
    return [
        helper.make_node(
            "MatMul", [node.input[0], constant("input/weight", weights.input)], [f"{prefix}/xw"], name=f"{prefix}/input"
        ),
        helper.make_node(
            "Add", [f"{prefix}/xw", constant("input/bias", weights.input_bias)], [f"{prefix}/x"], name=f"{prefix}/bias"
        ),
        helper.make_node("Shape", [node.input[0]], [f"{prefix}/batch"], start=1, end=2, name=f"{prefix}/shape"),
        helper.make_node(
            "Concat",
            [f"{prefix}/batch", constant("width", np.array([hidden], np.int64))],
            [f"{prefix}/state"],
            axis=0,
            name=f"{prefix}/state_shape",
        ),
        helper.make_node("ConstantOfShape", [f"{prefix}/state"], [f"{prefix}/zeros"], name=f"{prefix}/initial"),
        helper.make_node(
            "Scan",
            [f"{prefix}/zeros", f"{prefix}/x"],
            [f"{prefix}/last", f"{prefix}/states"],
            body=body,
            num_scan_inputs=1,
            name=f"{prefix}/scan",
        ),
        helper.make_node(
            "Unsqueeze",
            [f"{prefix}/states", constant("direction_axis", np.array([1], np.int64))],
            [node.output[0]],
            name=f"{prefix}/direction",
        ),
    ]


class _Step:
    """The body of a Scan. Short names are local; names with a slash belong to the graph around it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[TensorProto] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        """A constant of the body's own, as int8 weights and their zero points must be: see `runtime.onnx_session`."""
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value), self._local(name)))
        return self._constants[-1].name

    def add(self, op: str, inputs: list[str], outputs: list[str], domain: str | None = None, **attributes: int) -> None:
        names = [self._local(name) for name in outputs]
        node = helper.make_node(op, [self._local(name) for name in inputs], names, name=names[0], domain=domain)
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        self._nodes.append(node)

    def graph(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> onnx.GraphProto:
        """Return the body as a graph whose inputs and outputs are float32 [B, width]."""
        taken, made = (
            [helper.make_tensor_value_info(self._local(name), TensorProto.FLOAT, ["B", width]) for name, width in side]
            for side in (inputs.items(), outputs.items())
        )
        return helper.make_graph(self._nodes, self._name, taken, made, self._constants)

    def _local(self, name: str) -> str:
        return name if "/" in name or not name else f"{self._name}/{name}"


class _Weights:
    """A GRU node's weights, transposed for row vectors; gates stay in ONNX's order z, r, n.

    input [E, 3D], recurrent [D, 3D], input_bias and recurrent_bias [3D].
    """

    def __init__(self, w: np.ndarray, r: np.ndarray, b: np.ndarray) -> None:
        self.input = w[0].T
        self.recurrent = r[0].T
        self.input_bias, self.recurrent_bias = np.split(b[0], 2)


def _weights(model: onnx.ModelProto, node: onnx.NodeProto) -> _Weights:
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if attributes.get("direction", b"forward") != b"forward" or attributes.get("linear_before_reset") != 1:
        raise InputError(f"{node.name}: only forward GRUs with linear_before_reset=1 can be quantized")
    if any(node.input[4:]) or any(node.output[1:]):
        raise InputError(f"{node.name}: sequence_lens, an initial state and the last state are not supported")
    values = {item.name: item for item in model.graph.initializer}
    missing = [name for name in node.input[1:4] if name not in values]
    if missing or len(node.input) < 4:
        raise InputError(f"{node.name}: W, R and B must be constants, {missing or 'B'} is not")
    return _Weights(*(numpy_helper.to_array(values[name]) for name in node.input[1:4]))
