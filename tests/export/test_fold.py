"""Batch norms of somebody's graph: folded where that changes nothing, and left where it would."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from chan_rt.calibration.plan import find_layers
from chan_rt.calibration.qdq import find_sites
from chan_rt.chan_ref.backbones.choose import open_backbone
from chan_rt.export.backbone import backbone as graph_of
from chan_rt.export.fold import fold_batch_norms

WIDTH, SIZE, GRID = 6, 8, 2


def conv(read: str, made: str, weight: str = "w", *more: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node("Conv", [read, weight, *more], [made], **attributes)


def norm(read: str, made: str, *, operands: str = "gbmv", **attributes: object) -> onnx.NodeProto:
    return helper.make_node("BatchNormalization", [read, *operands], [made], **attributes)


def graph(nodes: list[onnx.NodeProto], ends: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """A stem that makes `x` [B, WIDTH, GRID, GRID] of the pixels, and the nodes behind it."""
    rng = np.random.default_rng(0)
    stride = SIZE // GRID
    arrays = {
        "stem": rng.standard_normal((WIDTH, 3, stride, stride)) / 7,
        "w": rng.standard_normal((WIDTH, WIDTH, 1, 1)),
        "deep": rng.standard_normal((WIDTH, 1, 1, 1)),
        "bias": rng.standard_normal(WIDTH),
        "g": rng.uniform(-2, 2, WIDTH),
        "b": rng.standard_normal(WIDTH),
        "m": rng.standard_normal(WIDTH),
        "v": rng.uniform(0.01, 2, WIDTH),
    }
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["B", 3, SIZE, SIZE])
    outputs = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["B", "C", "H", "W"]) for end in ends]
    weights = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    stem = conv("pixels", "x", "stem", strides=[stride, stride])
    made = helper.make_graph([stem, *nodes], "g", [pixels], outputs, weights)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # or it folds by itself
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(1).standard_normal((3, 3, SIZE, SIZE)).astype(np.float32)
    return session.run(None, {"pixels": pixels})


FOLDED = {
    "without a bias": [conv("x", "c"), norm("c", "y")],
    "with a bias": [conv("x", "c", "w", "bias"), norm("c", "y", epsilon=0.1)],
    "depthwise": [conv("x", "c", "deep", group=WIDTH), norm("c", "y")],
    "two that read one input and share their weight": [
        conv("x", "c"), conv("x", "d"), norm("c", "e"), norm("d", "f", operands="bgmv"),
        helper.make_node("Add", ["e", "f"], ["y"]),
    ],
    "two in a row": [conv("x", "c"), norm("c", "d"), norm("d", "y")],
    "in front of a Relu": [conv("x", "c"), norm("c", "d"), helper.make_node("Relu", ["d"], ["y"])],
}  # fmt: skip
KEPT = {
    "the Conv is read by others": [conv("x", "c"), norm("c", "d"), helper.make_node("Add", ["c", "d"], ["y"])],
    "no Conv is in front": [helper.make_node("Relu", ["x"], ["c"]), norm("c", "y")],
    "the weight is computed": [
        helper.make_node("Abs", ["w"], ["v2"]), conv("x", "c", "v2"), norm("c", "y")
    ],
    "a scale is computed": [helper.make_node("Abs", ["g"], ["k"]), conv("x", "c"), norm("c", "y", operands="kbmv")],
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDED)
def test_a_norm_behind_a_conv_is_folded(name: str) -> None:
    model = graph(FOLDED[name])
    expected = run(model)
    fold_batch_norms(model)
    onnx.checker.check_model(model, full_check=True)
    assert "BatchNormalization" not in [node.op_type for node in model.graph.node]
    for found, before in zip(run(model), expected, strict=True):
        np.testing.assert_allclose(found, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", KEPT)
def test_another_norm_is_kept(name: str) -> None:
    model = graph(KEPT[name])
    expected = list(model.graph.node)
    fold_batch_norms(model)
    assert list(model.graph.node) == expected


def test_a_conv_that_is_an_output_is_kept() -> None:
    model = graph([conv("x", "c"), norm("c", "y")], ends=("y", "c"))
    expected = run(model)
    fold_batch_norms(model)
    for found, before in zip(run(model), expected, strict=True):
        np.testing.assert_array_equal(found, before)


def test_a_norm_in_training_mode_is_kept() -> None:
    node = helper.make_node("BatchNormalization", ["c", *"gbmv"], ["y", "mean", "variance"], training_mode=1)
    model = graph([conv("x", "c"), node])
    fold_batch_norms(model)
    assert "BatchNormalization" in [node.op_type for node in model.graph.node]


def test_the_convs_of_an_onnx_backbone_are_quantized_with_their_norms(tmp_path: Path) -> None:
    """Conv, norm and Relu become one site, whose output is what the Relu makes."""
    model = graph([norm("x", "n"), helper.make_node("Relu", ["n"], ["r"]), conv("r", "c"), norm("c", "y")], ("y",))
    flat = numpy_helper.from_array(np.array([0, WIDTH, -1], np.int64), "flat")
    model.graph.initializer.append(flat)
    model.graph.node.append(helper.make_node("Reshape", ["y", "flat"], ["rows"]))
    model.graph.node.append(helper.make_node("Transpose", ["rows"], ["regions"], perm=[0, 2, 1]))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("regions", TensorProto.FLOAT, ["B", GRID**2, WIDTH]))
    onnx.save(model, tmp_path / "own.onnx")
    (tmp_path / "own.json").write_text(json.dumps({"mean": [0.5] * 3, "std": [0.5] * 3, "grid": GRID}))
    backbone = open_backbone(f"onnx:{tmp_path / 'own.onnx'}")
    adopted = graph_of(backbone, WIDTH)
    assert find_layers(adopted, "x86") == ["backbone/n", "backbone/y"]
    assert [site.output for site in find_sites(adopted)] == ["r", "y"]
    pixels = np.random.default_rng(1).standard_normal((3, 3, SIZE, SIZE)).astype(np.float32)
    session = onnxruntime.InferenceSession(adopted.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = backbone.regions(pixels).features
    np.testing.assert_allclose(session.run(None, {"pixels": pixels})[0], expected, rtol=1e-4, atol=1e-4)
