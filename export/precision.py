"""fp16 graphs: a pass that turns float32 into half, but for islands where half would lose the result.

Precision is a property of the graph: TensorRT 11 and TensorRT-RTX have only strongly typed networks, so what this pass
writes is what an engine computes in.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..runtime.errors import InputError
from .builder import FP32_SCOPES

# Its mean and variance are sums over a row, and BERT's epsilon (1e-12) does not exist in half.
FP32_OPS = frozenset({"LayerNormalization"})
# Graph inputs and outputs that travel as half; every other boundary tensor keeps its type, so that callers feed and
# read float32 pixels, regions and scores at any precision.
HALF_BOUNDARY = frozenset({"region_embeddings", "word_embeddings"})
# Products that must compute in half outside the islands: what the pass is for.
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "GRU"})


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a float32 graph that computes in half outside its fp32 islands.

    An island is a node in a scope of `builder.FP32_SCOPES` or of an operator in `FP32_OPS`; Casts are inserted only
    where a value enters or leaves an island, one for each value and direction. Integers and booleans are untouched.

    Before (checked): the default domain only, no subgraphs, float32 the only real type, constants as initializers, and
    every finite weight used outside islands finite in half.
    After (checked): a valid model with as many inputs and outputs of the same names; `HALF_BOUNDARY` tensors are
    float16; every product outside islands reads float16 only.

    Raises:
        InputError: the graph is not of that form, or a weight overflows half; the message names the node or weight.
    """
    _check_before(model)
    result = _Copy(model).made()
    _check_after(model, result)
    return result


class _Copy:
    """A copy of a graph in the making, which has its nodes in the graph's order and casts between them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._types = _value_types(model)
        self._held = {item.name: self._types[item.name] for item in model.graph.input}  # the type each value is made in
        self._weights = {item.name for item in model.graph.initializer}
        self._in_single, self._in_half = _uses(model)
        self._outputs = {item.name for item in model.graph.output}
        self._cast: set[str] = set()
        self._result = onnx.ModelProto()
        self._result.CopyFrom(model)
        self._graph = self._result.graph
        del self._graph.node[:], self._graph.initializer[:], self._graph.value_info[:]

    def made(self) -> onnx.ModelProto:
        """The copy, made whole."""
        for info in [*self._graph.input, *self._graph.output]:
            if info.name in HALF_BOUNDARY:
                info.type.tensor_type.elem_type = TensorProto.FLOAT16
        self._held |= {info.name: TensorProto.FLOAT16 for info in self._graph.input if info.name in HALF_BOUNDARY}
        for tensor in self._model.graph.initializer:
            self._add_weight(tensor)
        for node in self._model.graph.node:
            self._add_node(node)
        return self._result

    def _add_weight(self, tensor: TensorProto) -> None:
        """Keep a weight for islands, and round it for the nodes outside of them that read it."""
        if tensor.name in self._in_single or tensor.data_type != TensorProto.FLOAT:
            self._graph.initializer.append(tensor)
        if tensor.name in self._in_half:
            self._graph.initializer.append(_half(tensor, self._weight_name(tensor.name, TensorProto.FLOAT16)))

    def _add_node(self, node: onnx.NodeProto) -> None:
        """Add a node that reads and makes real values of its own type."""
        own = TensorProto.FLOAT if is_island(node) else TensorProto.FLOAT16
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for index, value in enumerate(node.input):
            if self._is_real(value):
                read = self._weight_name if value in self._weights else self._converted
                copy.input[index] = read(value, own)
        for attribute in copy.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = own
        after = []
        for index, value in enumerate(node.output):
            real = self._is_real(value)
            self._held[value] = own if real else self._types.get(value, TensorProto.UNDEFINED)
            wanted = TensorProto.FLOAT16 if value in HALF_BOUNDARY else TensorProto.FLOAT
            if real and value in self._outputs and own != wanted:
                copy.output[index] = f"{value}/{'half' if own == TensorProto.FLOAT16 else 'float'}"
                after.append(_cast(copy.output[index], value, wanted, f"{value}/cast"))
                self._held[value] = wanted
        self._graph.node.extend([copy, *after])

    def _is_real(self, value: str) -> bool:
        return bool(value) and self._types[value] == TensorProto.FLOAT

    def _weight_name(self, name: str, wanted: int) -> str:
        """A weight of that type: the rounded one has another name where islands read it, too."""
        both = name in self._in_single and name in self._in_half
        return f"{name}/half" if both and wanted == TensorProto.FLOAT16 else name

    def _converted(self, value: str, wanted: int) -> str:
        """A computed value of that type, by a cast that is added where there is none yet."""
        if self._held[value] == wanted:
            return value
        name = f"{value}/{'to_half' if wanted == TensorProto.FLOAT16 else 'to_float'}"
        if name not in self._cast:
            self._cast.add(name)
            self._graph.node.append(_cast(value, name, wanted, name))
        return name


def _cast(value: str, made: str, wanted: int, name: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [value], [made], name=name, to=wanted)


def is_island(node: onnx.NodeProto) -> bool:
    """Whether a node stays float32 in an fp16 graph."""
    return node.op_type in FP32_OPS or any(part in FP32_SCOPES for part in node.name.split("/")[:-1])


def _half(tensor: TensorProto, name: str) -> TensorProto:
    value = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        half = value.astype(np.float16)
    if not np.isfinite(half[np.isfinite(value)]).all():  # a mask is infinite in either
        raise InputError(
            f"weight {tensor.name} must fit in half (|x| <= 65504), its largest is {np.abs(value).max():.6g}: "
            "keep this model at fp32"
        )
    return numpy_helper.from_array(half, name)


def _uses(model: onnx.ModelProto) -> tuple[set[str], set[str]]:
    """Names of the float32 weights read by islands, and of those read by other nodes."""
    real = {item.name for item in model.graph.initializer if item.data_type == TensorProto.FLOAT}
    in_single: set[str] = set()
    in_half: set[str] = set()
    for node in model.graph.node:
        (in_single if is_island(node) else in_half).update(real.intersection(node.input))
    return in_single, in_half


def _value_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value of the graph."""
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    types = {item.name: item.data_type for item in graph.initializer}
    for info in [*graph.input, *graph.output, *graph.value_info]:
        types[info.name] = info.type.tensor_type.elem_type
    return types


def _check_before(model: onnx.ModelProto) -> None:
    found = {item.name: item.data_type for item in model.graph.initializer}
    found |= {info.name: info.type.tensor_type.elem_type for info in [*model.graph.input, *model.graph.output]}
    for name, data_type in found.items():
        if data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE):
            kind = TensorProto.DataType.Name(data_type).lower()
            raise InputError(f"to_half needs a float32 graph, {name} is {kind}")
    held = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.TENSOR)
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise InputError(f"to_half knows the default domain only, {node.name} is {node.domain}.{node.op_type}")
        if any(attribute.type in held for attribute in node.attribute):
            raise InputError(f"to_half needs constants as initializers and no subgraphs, {node.name} holds one")


def _check_after(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Check what must hold after the pass; a failure is a mistake of the pass, reported with the name of the node."""
    onnx.checker.check_model(after, full_check=True)
    types = _value_types(after)
    for old, new in ((before.graph.input, after.graph.input), (before.graph.output, after.graph.output)):
        if [item.name for item in old] != [item.name for item in new]:
            raise InputError(f"to_half changed the boundary of {before.graph.name}")
    for node in after.graph.node:
        if node.op_type in PRODUCTS and not is_island(node):
            single = [value for value in node.input if value and types[value] == TensorProto.FLOAT]
            if single:
                raise InputError(f"to_half left {node.name} reading float32 from {', '.join(single)}")
