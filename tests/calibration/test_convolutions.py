"""int8 of Convs for onnxruntime: fused into integers, near to float32, and never quantized behind one's back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from chan_rt.calibration.calibrate import observed_tensors
from chan_rt.calibration.plan import Plan, find_layers, first_convolutions, to_int8
from chan_rt.calibration.qdq import quantize
from chan_rt.calibration.ranges import Histogram, TensorRange, choose_range
from chan_rt.runtime.errors import InputError

SIZE, WIDTH = 32, 16


def backbone(first: int = 1) -> onnx.ModelProto:
    """A stem of `first` strides of 2, then a bottleneck with depthwise weights beside a sum, a Relu and a head."""
    rng = np.random.default_rng(3)
    nodes, weights = [], {"low": np.float32(0), "high": np.float32(6)}

    def convolution(name: str, read: str, shape: tuple[int, ...], stride: int = 1) -> str:
        outputs, inputs, size, _ = shape
        scale = np.geomspace(0.1, 3, outputs).reshape(-1, 1, 1, 1) / np.sqrt(inputs * size * size)
        weights[f"{name}/w"] = (rng.standard_normal(shape) * scale).astype(np.float32)
        weights[f"{name}/b"] = (rng.standard_normal(outputs) / 2).astype(np.float32)
        groups = WIDTH if inputs == 1 else 1
        pads, strides = [size // 2] * 4, [stride] * 2
        operands = [read, f"{name}/w", f"{name}/b"]
        nodes.append(helper.make_node("Conv", operands, [name], name=name, pads=pads, strides=strides, group=groups))
        return name

    def clipped(read: str) -> str:
        nodes.append(helper.make_node("Clip", [read, "low", "high"], [f"{read}/clip"], name=f"{read}/clip"))
        return f"{read}/clip"

    at = "pixels"
    for step in range(first):
        at = clipped(convolution(f"stem{step}", at, (WIDTH, 3 if step == 0 else WIDTH, 3, 3), 2))
    at = clipped(convolution("expand", at, (WIDTH, WIDTH, 3, 3), 4))
    skip = convolution("project", at, (WIDTH, WIDTH, 1, 1))
    deep = clipped(convolution("depthwise", skip, (WIDTH, 1, 3, 3)))
    deep = convolution("again", deep, (WIDTH, WIDTH, 1, 1))
    nodes.append(helper.make_node("Add", [skip, deep], ["sum"], name="sum"))
    nodes.append(helper.make_node("Relu", [convolution("head", "sum", (WIDTH, WIDTH, 1, 1))], ["y"], name="relu"))
    nodes.append(helper.make_node("AveragePool", ["y"], ["regions"], name="pool", kernel_shape=[2, 2]))
    graph = helper.make_graph(
        nodes,
        "backbone",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["B", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("regions", TensorProto.FLOAT, ["B", WIDTH, "H", "W"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def pixels(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).uniform(-1, 1, (24, 3, 8, 8)).astype(np.float32)
    return coarse.repeat(SIZE // 8, 2).repeat(SIZE // 8, 3)


def run(model: onnx.ModelProto, x: np.ndarray, optimized: Path | None = None) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixels": x})[0]


def ranges_of(model: onnx.ModelProto, x: np.ndarray) -> dict[str, TensorRange]:
    names = observed_tensors(model)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    inner = [name for name in names if name != "pixels"]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    values = {"pixels": x, **dict(zip(inner, session.run(inner, {"pixels": x}), strict=True))}
    found = {}
    for name in names:
        histogram = Histogram()
        histogram.add(name, values[name])
        found[name] = choose_range(name, histogram, "minmax")
    return found


def least_cosine(a: np.ndarray, b: np.ndarray) -> float:
    length = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / length).min())


def test_convolutions_become_integer_ones_that_compute_nearly_the_same(tmp_path: Path) -> None:
    model = backbone()
    quantized = to_int8(model, ranges_of(model, pixels(0)), "x86", Plan().excluded("backbone", model))
    found = run(quantized, pixels(1), tmp_path / "optimized.onnx")
    assert least_cosine(run(model, pixels(1)), found) > 0.99
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == 5
    assert kinds.count("Conv") == 1, "the stem makes half of the picture's size"


def test_a_picture_does_not_depend_on_its_batch() -> None:
    model = backbone()
    quantized = to_int8(model, ranges_of(model, pixels(0)), "x86", ())
    alone = np.concatenate([run(quantized, row[None]) for row in pixels(1)])
    np.testing.assert_array_equal(run(quantized, pixels(1)), alone)


@pytest.mark.parametrize("stem", [1, 2])
def test_the_convolutions_before_an_eighth_stay_float(stem: int) -> None:
    model = backbone(stem)
    assert first_convolutions(model) == tuple(f"stem{step}" for step in range(stem))
    assert find_layers(model, "x86")[:stem] == list(first_convolutions(model))


def test_tensorrt_has_no_convolutions() -> None:
    model = backbone()
    assert find_layers(model, "tensorrt") == []
    with pytest.raises(InputError, match="stem0: a Conv is quantized for onnxruntime on x86 only"):
        quantize(model, ranges_of(model, pixels(0)), "tensorrt")


@pytest.mark.parametrize("name", ["expand", "project", "depthwise", "again"])
def test_a_float_convolution_behind_an_integer_one_is_refused(name: str) -> None:
    """onnxruntime would quantize it with one scale for all channels."""
    model = backbone()
    with pytest.raises(InputError, match=f"{name} cannot stay float32: it reads what .* made of int8"):
        to_int8(model, ranges_of(model, pixels(0)), "x86", (name,))


def test_a_channel_of_zeros_keeps_its_bias() -> None:
    """A scale made of its weights alone would not let the bias into 32 bits."""
    model = backbone()
    for tensor in model.graph.initializer:
        if tensor.name == "head/w":
            values = numpy_helper.to_array(tensor).copy()
            values[0], values[1] = 0, values[1] * 1e-30
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        if tensor.name == "head/b":
            tensor.CopyFrom(numpy_helper.from_array(np.full(WIDTH, 1.5, np.float32), tensor.name))
    ranges = ranges_of(model, pixels(0))
    found = run(to_int8(model, ranges, "x86", ("stem0",)), pixels(1))[:, :2]
    assert np.abs(found - 1.5).max() <= ranges["y"].high / 255
