"""Explicit quantization: QuantizeLinear/DequantizeLinear pairs around the products of an ONNX graph.

A product is a MatMul, a Gemm or a Conv. A Conv is quantized by the scheme x86 only. Its bias and its output, behind a
Clip or Relu, are quantized with it, because onnxruntime computes in integers (QLinearConv) only where all of these are.

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
_LIMIT = 2.0**30  # of a quantized bias, which is an int32


@dataclass(frozen=True)
class Site:
    """One product that can be quantized.

    Attributes:
        node: name of the product's node.
        activations: input index -> tensor name, for inputs computed at run time.
        weights: input index -> initializer name.
        output: of a Conv, the tensor that it makes, or that the Clip or Relu behind it makes; None where that is an
            output of the graph, and for the other products, which make floats.
        bias: of a Conv, the initializer's name; None where it has no bias.
        convolution: whether it is a Conv.
    """

    node: str
    activations: Mapping[int, str]
    weights: Mapping[int, str]
    output: str | None = None
    bias: str | None = None
    convolution: bool = False


def find_sites(model: onnx.ModelProto) -> list[Site]:
    """Return every MatMul, every Gemm and every Conv with constant weights of the graph, in graph order.

    Raises:
        InputError: one of them has no name.
    """
    constants = {item.name for item in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    ends = {item.name for item in model.graph.output}
    sites = []
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv"):
            continue
        if node.op_type == "Conv" and not constants.issuperset(filter(None, node.input[1:])):
            continue
        if not node.name:
            raise InputError(
                f"the {node.op_type} that makes {node.output[0]} has no name: quantization plans name nodes"
            )
        operands = dict(enumerate(node.input[:2]))
        output = bias = None
        if node.op_type == "Conv":
            behind = readers.get(node.output[0], [])
            rectified = len(behind) == 1 and behind[0].op_type in ("Clip", "Relu") and node.output[0] not in ends
            made = behind[0].output[0] if rectified else node.output[0]
            output = None if made in ends else made
            bias = (node.input[2] or None) if len(node.input) > 2 else None
        sites.append(
            Site(
                node=node.name,
                activations={index: name for index, name in operands.items() if name not in constants},
                weights={index: name for index, name in operands.items() if name in constants},
                output=output,
                bias=bias,
                convolution=node.op_type == "Conv",
            )
        )
    return sites


def quantize(
    model: onnx.ModelProto, ranges: Mapping[str, TensorRange], scheme: Scheme, exclude: Collection[str] = ()
) -> onnx.ModelProto:
    """Return a copy of a float32 graph whose products are quantized.

    Before: every product is named, and `ranges` covers the activations of those not excluded. After: each of their
    operands, and what a Conv makes, passes through a Q/DQ pair (weights: stored int8 and one DQ), everything else is
    untouched, and the graph computes in float32 between them. Where a graph adds what it has to what a Conv made, the
    sum is float32, and only what the next Conv reads of it is quantized.

    Args:
        model: the float32 graph.
        ranges: ranges of the activations by tensor name, from `calibration.ranges`.
        scheme: the library that the artifact is for.
        exclude: names of nodes to leave in float32.

    Raises:
        InputError: an excluded node does not exist or is a Conv that reads what a quantized one made, an activation
            has no range, or a Conv is to be quantized for TensorRT.
    """
    sites = find_sites(model)
    unknown = set(exclude) - {site.node for site in sites}
    if unknown:
        raise InputError(f"exclude names no matrix product of this graph: {', '.join(sorted(unknown))}")
    made = {site.output: site.node for site in sites if site.output and site.node not in exclude}
    for site in sites:
        if site.node in exclude and site.weights and site.activations.get(0) in made:
            # onnxruntime would quantize its weights all the same, and with one scale for all channels: with depthwise
            # weights the median cosine of a region was then 0.61 in place of 0.99 (1.32.0, WeightBiasQuantization)
            raise InputError(f"{site.node} cannot stay float32: it reads what {made[site.activations[0]]} made of int8")
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
        self.behind: dict[str, list[onnx.NodeProto]] = {}
        self.dequantized: dict[str, str] = {}

    def rewrite(self, site: Site) -> None:
        node = self.nodes[site.node]
        if site.convolution:
            self._convolution(site, node)
            return
        for index, tensor in site.activations.items():
            node.input[index] = self._activation(tensor, node)
        for index, tensor in site.weights.items():
            node.input[index] = self._weight(tensor, node, index)

    def _convolution(self, site: Site, node: onnx.NodeProto) -> None:
        if self.scheme != "x86":
            raise InputError(f"{node.name}: a Conv is quantized for onnxruntime on x86 only")
        scale, _ = affine(self._range(site.activations[0], node), self.scheme)
        node.input[0] = self._activation(site.activations[0], node)
        if site.bias is None:
            node.input[1] = self._weight(site.weights[1], node, 1)
        else:
            bias = numpy_helper.to_array(self.initializers[site.bias])
            node.input[1] = self._weight(site.weights[1], node, 1, np.abs(bias) / (_LIMIT * float(scale)))
            node.input[2] = self._bias(site.bias, bias, float(scale) * self._scales(site.weights[1]), node)
        if site.output is not None:
            self._made(site.output, node)

    def finish(self) -> None:
        nodes = [
            node
            for old in self.model.graph.node
            for node in (*self.before.get(old.name, ()), old, *(self.behind.get(old.output[0], ())))
        ]
        del self.model.graph.node[:]
        self.model.graph.node.extend(nodes)
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(self.initializers.values())
        drop_unused_initializers(self.model)

    def _constant(self, name: str, value: np.ndarray) -> str:
        self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def _range(self, tensor: str, user: onnx.NodeProto) -> TensorRange:
        if tensor not in self.ranges:
            side = "an input" if tensor in user.input else "the output"
            raise InputError(f"no calibrated range for {tensor}, {side} of {user.name}: run chan calibrate again")
        return self.ranges[tensor]

    def _pair(self, tensor: str, user: onnx.NodeProto) -> list[onnx.NodeProto]:
        scale, zero = affine(self._range(tensor, user), self.scheme)
        names = (self._constant(f"{tensor}/scale", scale), self._constant(f"{tensor}/zero_point", zero))
        self.dequantized[tensor] = f"{tensor}/dq"
        return [
            helper.make_node("QuantizeLinear", [tensor, *names], [f"{tensor}/q"], name=f"{tensor}/quantize"),
            helper.make_node(
                "DequantizeLinear", [f"{tensor}/q", *names], [f"{tensor}/dq"], name=f"{tensor}/dequantize"
            ),
        ]

    def _activation(self, tensor: str, consumer: onnx.NodeProto) -> str:
        if tensor not in self.dequantized:
            self.before.setdefault(consumer.name, []).extend(self._pair(tensor, consumer))
        return self.dequantized[tensor]

    def _made(self, tensor: str, producer: onnx.NodeProto) -> None:
        """Quantize what a Conv makes, for everything that reads it."""
        self.behind[tensor] = self._pair(tensor, producer)
        for node in self.model.graph.node:
            node.input[:] = [f"{tensor}/dq" if name == tensor else name for name in node.input]

    def _scales(self, weight: str) -> np.ndarray:
        scales: np.ndarray = numpy_helper.to_array(self.initializers[f"{weight}/scale"])
        return scales

    def _bias(self, tensor: str, bias: np.ndarray, scale: np.ndarray, consumer: onnx.NodeProto) -> str:
        name = f"{consumer.name}/{tensor}"  # its scale is that of one Conv
        inputs = [
            self._constant(f"{name}/int32", np.rint(bias / scale).astype(np.int32)),
            self._constant(f"{name}/scale", scale.astype(np.float32)),
            self._constant(f"{name}/zero_point", np.zeros(len(bias), np.int32)),
        ]
        node = helper.make_node("DequantizeLinear", inputs, [f"{name}/dq"], name=f"{name}/dequantize", axis=0)
        self.before.setdefault(consumer.name, []).append(node)
        return f"{name}/dq"

    def _weight(self, tensor: str, consumer: onnx.NodeProto, index: int, least: np.ndarray | float = 0.0) -> str:
        if tensor not in self.dequantized:
            weight = numpy_helper.to_array(self.initializers[tensor])
            axis = output_axis(consumer, index, weight.ndim)
            values, scale = quantize_weight(weight, axis, least)
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


def quantize_weight(weight: np.ndarray, axis: int, least: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Quantize a weight along an axis: symmetric int8 values (same shape) and float32 scales [channels].

    The scale of a channel of zeros is 1. No scale is below `least`, one number or [channels].
    """
    others = tuple(other for other in range(weight.ndim) if other != axis)
    largest = np.abs(weight).max(axis=others)
    scale = np.maximum(np.where(largest > 0, largest / 127, 1.0), least).astype(np.float32)
    shape = [1] * weight.ndim
    shape[axis] = -1
    return np.rint(weight / scale.reshape(shape)).astype(np.int8), scale


def output_axis(node: onnx.NodeProto, index: int, rank: int) -> int:
    """Return the axis of an operand that is also an axis of the product; scales per channel run along it."""
    if node.op_type == "Conv":
        return 0
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
