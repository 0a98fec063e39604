"""The fp16 pass: half where it pays, float32 where it must be, and refusals that name what is wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from chan_rt.chan_ref.backbones.base import Backbone
from chan_rt.chan_ref.model import ChanModel
from chan_rt.export.alignment import hard_alignment
from chan_rt.export.backbone import backbone
from chan_rt.export.graphs import build_graphs
from chan_rt.export.precision import to_half
from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.errors import InputError

ISLANDS = {"LayerNormalization", "ReduceL2", "Exp", "Log", "ReduceSum"}
PRODUCTS = {"MatMul", "Gemm", "GRU", "Conv"}


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {item.name: item.data_type for item in graph.initializer}
    return types | {
        item.name: item.type.tensor_type.elem_type for item in [*graph.input, *graph.output, *graph.value_info]
    }


def real_inputs(node: onnx.NodeProto, types: dict[str, int]) -> set[int]:
    return {types[name] for name in node.input if name} & {TensorProto.FLOAT, TensorProto.FLOAT16}


@pytest.mark.parametrize("text", ["bigru", "bert"])
def test_products_are_half_and_islands_are_not(tiny_model: Callable[..., ChanModel], text: str) -> None:
    seen = set()
    for graph in build_graphs(tiny_model(text=text)).values():
        model = to_half(graph)
        types = types_of(model)
        for node in model.graph.node:
            if node.op_type in ISLANDS:
                assert real_inputs(node, types) == {TensorProto.FLOAT}, node.name
            if node.op_type in PRODUCTS:
                assert real_inputs(node, types) == {TensorProto.FLOAT16}, node.name
            seen.add(node.op_type)
    assert seen >= {"LayerNormalization", "ReduceL2", "Exp", "MatMul", "Gemm"}


def test_boundary_types(tiny_model: Callable[..., ChanModel]) -> None:
    found = {}
    for graph in build_graphs(tiny_model()).values():
        model = to_half(graph)
        for info in [*model.graph.input, *model.graph.output]:
            found[info.name] = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type).name
    assert found == {
        "regions": "float32",
        "region_lengths": "int32",
        "region_embeddings": "float16",
        "token_ids": "int32",
        "token_lengths": "int32",
        "word_embeddings": "float16",
        "word_lengths": "int32",
        "scores": "float32",
        "word_scores": "float32",
        "word_regions": "int32",
    }


def test_no_cast_is_made_twice_or_undone(tiny_model: Callable[..., ChanModel]) -> None:
    for graph in build_graphs(tiny_model(text="bert")).values():
        model = to_half(graph)
        casts = {node.output[0]: node for node in model.graph.node if node.op_type == "Cast"}
        types = types_of(model)
        for node in casts.values():
            to = node.attribute[0].i
            assert types[node.input[0]] != to, f"{node.name} changes nothing"
            if node.input[0] in casts:
                before = types[casts[node.input[0]].input[0]]
                assert {before, to} != {TensorProto.FLOAT, TensorProto.FLOAT16}, f"{node.name} undoes a cast"
        keys = [(node.input[0], node.attribute[0].i) for node in casts.values()]
        assert len(set(keys)) == len(keys)


def test_the_source_is_left_alone(tiny_model: Callable[..., ChanModel]) -> None:
    graph = build_graphs(tiny_model())["region_encoder"]
    before = graph.SerializeToString(deterministic=True)
    to_half(graph)
    assert graph.SerializeToString(deterministic=True) == before


def test_backbone_keeps_float32_regions(tiny_backbone: Backbone) -> None:
    model = to_half(backbone(tiny_backbone, 13))
    types = types_of(model)
    assert types["pixels"] == types["regions"] == TensorProto.FLOAT
    (convolution,) = (node for node in model.graph.node if node.op_type == "Conv")
    assert real_inputs(convolution, types) == {TensorProto.FLOAT16}


def test_a_weight_that_overflows_half_is_named(tiny_model: Callable[..., ChanModel]) -> None:
    model = tiny_model()
    model.region_encoder.projection.weight[0, 0] = 1e5
    graph = build_graphs(model)["region_encoder"]
    with pytest.raises(InputError, match=r"region_encoder/projection/weight must fit in half .* 100000"):
        to_half(graph)


def test_refuses_a_half_graph() -> None:
    half = to_half(hard_alignment(AlignmentConfig(), 8))
    with pytest.raises(InputError, match=r"needs a float32 graph, .* is float16"):
        to_half(half)


@pytest.mark.parametrize("fault", ["domain", "constant"])
def test_refuses_nodes_it_does_not_know(fault: str) -> None:
    graph = hard_alignment(AlignmentConfig(), 8)
    if fault == "domain":
        graph.graph.node[0].domain = "com.microsoft"
        message = "default domain only, .* com.microsoft"
    else:
        value = numpy_helper.from_array(np.float32(1))
        graph.graph.node.insert(0, helper.make_node("Constant", [], ["one"], name="one", value=value))
        message = "constants as initializers and no subgraphs, one holds one"
    with pytest.raises(InputError, match=message):
        to_half(graph)
