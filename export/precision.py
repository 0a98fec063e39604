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
    types = _value_types(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
    weights = {item.name: item for item in model.graph.initializer}
    in_single, in_half = _uses(model)
    for name, tensor in weights.items():
        if name in in_single or tensor.data_type != TensorProto.FLOAT:
            result.graph.initializer.append(tensor)
        if name in in_half:
            result.graph.initializer.append(_half(tensor, _half_name(name) if name in in_single else name))

    outputs = {item.name for item in model.graph.output}
    held = {item.name: types[item.name] for item in model.graph.input}  # the type each computed value is made in
    for info in result.graph.input:
        if info.name in HALF_BOUNDARY:
            info.type.tensor_type.elem_type = held[info.name] = TensorProto.FLOAT16
    cast: set[str] = set()

    def converted(value: str, wanted: int) -> str:
        if held[value] == wanted:
            return value
        name = f"{value}/{'to_half' if wanted == TensorProto.FLOAT16 else 'to_float'}"
        if name not in cast:
            cast.add(name)
            result.graph.node.append(helper.make_node("Cast", [value], [name], name=name, to=wanted))
        return name

    for node in model.graph.node:
        own = TensorProto.FLOAT if is_island(node) else TensorProto.FLOAT16
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for index, value in enumerate(node.input):
            if not value or types[value] != TensorProto.FLOAT:
                continue
            if value in weights:
                both = value in in_single and value in in_half
                copy.input[index] = _half_name(value) if both and own == TensorProto.FLOAT16 else value
            else:
                copy.input[index] = converted(value, own)
        for attribute in copy.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = own
        result.graph.node.append(copy)
        for index, value in enumerate(node.output):
            real = bool(value) and types[value] == TensorProto.FLOAT
            held[value] = own if real else types.get(value, TensorProto.UNDEFINED)
            if value not in outputs or not real:
                continue
            wanted = TensorProto.FLOAT16 if value in HALF_BOUNDARY else TensorProto.FLOAT
            if own != wanted:
                inner = f"{value}/{'half' if own == TensorProto.FLOAT16 else 'float'}"
                result.graph.node[-1].output[index] = inner
                result.graph.node.append(helper.make_node("Cast", [inner], [value], name=f"{value}/cast", to=wanted))
                held[value] = wanted
    for info in result.graph.output:
        if info.name in HALF_BOUNDARY:
            info.type.tensor_type.elem_type = TensorProto.FLOAT16
    _check_after(model, result)
    return result


def is_island(node: onnx.NodeProto) -> bool:
    """Whether a node stays float32 in an fp16 graph."""
    return node.op_type in FP32_OPS or any(part in FP32_SCOPES for part in node.name.split("/")[:-1])


def _half_name(name: str) -> str:
    return f"{name}/half"


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
