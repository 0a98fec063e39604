"""Explicit quantization: QuantizeLinear/DequantizeLinear pairs around the matrix products of an ONNX graph.

Two schemes, never one file for both:
    tensorrt  activations int8 symmetric per tensor, weights int8 symmetric per output channel: all TensorRT parses
    x86       activations uint8 with a zero point, weights as above: onnxruntime fuses each product into one
              MatMulIntegerToFloat on its uint8 x int8 path

Both store activations' ranges as constants (static): a dynamic range would be taken over the whole batch, and a result
would then depend on what else is in it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..runtime.errors import InputError
from .ranges import TensorRange

Scheme = Literal["tensorrt", "x86"]


@dataclass(frozen=True)
class Site:
    """One matrix product that can be quantized.

    Attributes:
        node: name of the product's node.
        activations: input index -> tensor name, for inputs computed at run time.
        weights: input index -> initializer name.
    """

    node: str
    activations: Mapping[int, str]
    weights: Mapping[int, str]


def find_sites(model: onnx.ModelProto) -> list[Site]:
    """Return every MatMul and Gemm of the graph, in graph order; InputError if one has no name."""
    constants = {item.name for item in model.graph.initializer}
    sites = []
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        if not node.name:
            raise InputError(
                f"the {node.op_type} that makes {node.output[0]} has no name: quantization plans name nodes"
            )
        operands = dict(enumerate(node.input[:2]))
        sites.append(
            Site(
                node=node.name,
                activations={index: name for index, name in operands.items() if name not in constants},
                weights={index: name for index, name in operands.items() if name in constants},
            )
        )
    return sites


def quantize(
    model: onnx.ModelProto, ranges: Mapping[str, TensorRange], scheme: Scheme, exclude: Collection[str] = ()
) -> onnx.ModelProto:
    """Return a copy of a float32 graph whose matrix products are quantized.

    Before: every MatMul and Gemm is named, and `ranges` covers the activations of those not excluded. After: each of
    their operands passes through a Q/DQ pair (weights: stored int8 and one DQ), everything else is untouched, and the
    graph computes in float32 between them.

    Args:
        model: the float32 graph.
        ranges: ranges of the activations by tensor name, from `calibration.ranges`.
        scheme: the library that the artifact is for.
        exclude: names of nodes to leave in float32.

    Raises:
        InputError: an excluded node does not exist, or an activation has no range.
    """
    sites = find_sites(model)
    unknown = set(exclude) - {site.node for site in sites}
    if unknown:
        raise InputError(f"exclude names no matrix product of this graph: {', '.join(sorted(unknown))}")
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    rewriter = _Rewriter(quantized, ranges, scheme)
    for site in sites:
        if site.node not in exclude:
            rewriter.rewrite(site)
    rewriter.finish()
    return quantized


class _Rewriter:
    def __init__(self, model: onnx.ModelProto, ranges: Mapping[str, TensorRange], scheme: Scheme) -> None:
        self.model = model
        self.ranges = ranges
        self.scheme = scheme
        self.nodes = {node.name: node for node in model.graph.node}
        self.initializers = {item.name: item for item in model.graph.initializer}
        self.before: dict[str, list[onnx.NodeProto]] = {}
        self.dequantized: dict[str, str] = {}

    def rewrite(self, site: Site) -> None:
        node = self.nodes[site.node]
        for index, tensor in site.activations.items():
            node.input[index] = self._activation(tensor, node)
        for index, tensor in site.weights.items():
            node.input[index] = self._weight(tensor, node, index)

    def finish(self) -> None:
        nodes = [node for old in self.model.graph.node for node in (*self.before.get(old.name, ()), old)]
        del self.model.graph.node[:]
        self.model.graph.node.extend(nodes)
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(self.initializers.values())
        drop_unused_initializers(self.model)

    def _constant(self, name: str, value: np.ndarray) -> str:
        self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def _activation(self, tensor: str, consumer: onnx.NodeProto) -> str:
        if tensor not in self.dequantized:
            if tensor not in self.ranges:
                raise InputError(
                    f"no calibrated range for {tensor}, an input of {consumer.name}: run chan calibrate again"
                )
            scale, zero = affine(self.ranges[tensor], self.scheme)
            names = (self._constant(f"{tensor}/scale", scale), self._constant(f"{tensor}/zero_point", zero))
            pair = [
                helper.make_node("QuantizeLinear", [tensor, *names], [f"{tensor}/q"], name=f"{tensor}/quantize"),
                helper.make_node(
                    "DequantizeLinear", [f"{tensor}/q", *names], [f"{tensor}/dq"], name=f"{tensor}/dequantize"
                ),
            ]
            self.before.setdefault(consumer.name, []).extend(pair)
            self.dequantized[tensor] = f"{tensor}/dq"
        return self.dequantized[tensor]

    def _weight(self, tensor: str, consumer: onnx.NodeProto, index: int) -> str:
        if tensor not in self.dequantized:
            weight = numpy_helper.to_array(self.initializers[tensor])
            axis = output_axis(consumer, index, weight.ndim)
            values, scale = quantize_weight(weight, axis)
            inputs = [self._constant(f"{tensor}/int8", values), self._constant(f"{tensor}/scale", scale)]
            # without it onnxruntime 1.22 would end the process on an x86 without VNNI: see `runtime.onnx_session`
            inputs.append(self._constant(f"{tensor}/zero_point", np.zeros(len(scale), np.int8)))
            node = helper.make_node(
                "DequantizeLinear", inputs, [f"{tensor}/dq"], name=f"{tensor}/dequantize", axis=axis
            )
            self.before.setdefault(consumer.name, []).append(node)
            self.dequantized[tensor] = f"{tensor}/dq"
        return self.dequantized[tensor]


def drop_unused_initializers(model: onnx.ModelProto) -> None:
    """Remove, in place, the initializers that no node reads, those inside a Scan's body included."""
    used: set[str] = set()
    pending = list(model.graph.node)
    while pending:
        node = pending.pop()
        used.update(node.input)
        pending.extend(inner for attribute in node.attribute for inner in attribute.g.node)
    kept = [item for item in model.graph.initializer if item.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def affine(tensor_range: TensorRange, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """Return the scale (float32 scalar) and the zero point (int8 or uint8 scalar) that cover a range.

    tensorrt: x ~ scale * q with q in [-127, 127]; x86: x ~ scale * (q - zero) with q in [0, 255]. 0 is exact in both.
    """
    if scheme == "tensorrt":
        return np.array(tensor_range.amax / 127, np.float32), np.array(0, np.int8)
    low, high = min(tensor_range.low, 0.0), max(tensor_range.high, 0.0)
    scale = (high - low) / 255
    return np.array(scale, np.float32), np.array(round(-low / scale), np.uint8)


def quantize_weight(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantize a weight along an axis: symmetric int8 values (same shape) and float32 scales [channels].

    The scale of a channel of zeros is 1.
    """
    others = tuple(other for other in range(weight.ndim) if other != axis)
    largest = np.abs(weight).max(axis=others)
    scale = np.where(largest > 0, largest / 127, 1.0).astype(np.float32)
    shape = [1] * weight.ndim
    shape[axis] = -1
    return np.rint(weight / scale.reshape(shape)).astype(np.int8), scale


def output_axis(node: onnx.NodeProto, index: int, rank: int) -> int:
    """Return the axis of an operand that is also an axis of the product; scales per channel run along it."""
    if node.op_type == "Gemm":
        transposed = next((a.i for a in node.attribute if a.name == ("transA", "transB")[index]), 0)
        return (0, 1)[index] ^ transposed
    return rank - 1 if index == 1 else rank - 2


def validate_for_tensorrt(model: onnx.ModelProto) -> None:
    """Raise InputError for the first Q/DQ node that TensorRT would not parse or would not fuse.

    The rules: int8 only, zero points all 0, activations per tensor, weights per output channel of their product.
    """
    values = {item.name: item for item in model.graph.initializer}
    producer = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        _check_pair(node, values)
    for site_node in model.graph.node:
        if site_node.op_type in ("MatMul", "Gemm"):
            for index, name in enumerate(site_node.input[:2]):
                _check_operand(site_node, index, producer.get(name), values)


def _check_pair(node: onnx.NodeProto, values: Mapping[str, TensorProto]) -> None:
    if len(node.input) < 3:
        raise InputError(f"{node.name}: has no zero point, so its type is uint8; TensorRT supports int8 only")
    if node.input[1] not in values or node.input[2] not in values:
        raise InputError(f"{node.name}: scale and zero point must be constants")
    zero = values[node.input[2]]
    if zero.data_type != TensorProto.INT8:
        raise InputError(f"{node.name}: is {TensorProto.DataType.Name(zero.data_type)}; TensorRT supports INT8 only")
    if numpy_helper.to_array(zero).any():
        raise InputError(f"{node.name}: zero point must be 0 everywhere; TensorRT quantizes symmetrically")
    scale = numpy_helper.to_array(values[node.input[1]])
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise InputError(f"{node.name}: every scale must be positive and finite")


def _check_operand(
    product: onnx.NodeProto, index: int, dequantize: onnx.NodeProto | None, values: Mapping[str, TensorProto]
) -> None:
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return
    scale = values[dequantize.input[1]]
    is_weight = dequantize.input[0] in values
    if not is_weight:
        if len(scale.dims) and np.prod(scale.dims) != 1:
            raise InputError(f"{dequantize.name}: activations are quantized per tensor, got {list(scale.dims)} scales")
        return
    weight = values[dequantize.input[0]]
    axis = next((a.i for a in dequantize.attribute if a.name == "axis"), 1) % len(weight.dims)
    wanted = output_axis(product, index, len(weight.dims))
    if len(scale.dims) and (axis != wanted or scale.dims[0] != weight.dims[wanted]):
        raise InputError(
            f"{dequantize.name}: weights of {product.name} need one scale per output channel on axis {wanted}"
        )
