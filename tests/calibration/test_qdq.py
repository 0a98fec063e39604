"""Q/DQ insertion: what onnxruntime computes stays close, what TensorRT would not parse is refused by name."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from chan_rt.calibration import qdq
from chan_rt.calibration.ranges import Histogram, TensorRange, choose_range
from chan_rt.runtime.errors import InputError

RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.standard_normal((48, 32)).astype(np.float32) / 7,
    "wt": RNG.standard_normal((16, 32)).astype(np.float32) / 6,
    "bias": RNG.standard_normal(16).astype(np.float32),
}


@pytest.fixture
def model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Gemm", ["a", "wt", "bias"], ["b"], name="second", transB=1),
        helper.make_node("Transpose", ["b"], ["bt"], name="flip", perm=[1, 0]),
        helper.make_node("MatMul", ["b", "bt"], ["y"], name="gram"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 48])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "B2"])],
        [numpy_helper.from_array(value, name) for name, value in WEIGHTS.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def x() -> np.ndarray:
    return np.abs(RNG.standard_normal((64, 48))).astype(np.float32)


@pytest.fixture
def ranges(x: np.ndarray) -> dict[str, TensorRange]:
    a = x @ WEIGHTS["w"]
    b = a @ WEIGHTS["wt"].T + WEIGHTS["bias"]
    found = {}
    for name, values in {"x": x, "a": a, "b": b, "bt": b.T}.items():
        histogram = Histogram()
        histogram.add(name, values)
        found[name] = choose_range(name, histogram, "minmax")
    return found


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("scheme", ["tensorrt", "x86"])
def test_quantized_graph_computes_the_same_within_rounding(model, x, ranges, scheme) -> None:
    quantized = qdq.quantize(model, ranges, scheme)
    # each node's own quantization: 3 products of operands each at ~1/127 resolution
    assert cosine(run(quantized, x), run(model, x)) > 0.999
    weights = {item.name for item in quantized.graph.initializer}
    assert {"w", "wt"} & weights == set()


def test_excluded_node_keeps_float_operands(model, x, ranges) -> None:
    quantized = qdq.quantize(model, ranges, "tensorrt", exclude=["first", "gram"])
    nodes = {node.name: node for node in quantized.graph.node}
    assert list(nodes["first"].input) == ["x", "w"]
    assert list(nodes["gram"].input) == ["b", "bt"]
    assert nodes["second"].input[0] == "a/dq"
    assert cosine(run(quantized, x), run(model, x)) > 0.999


def test_excluding_everything_changes_nothing(model, ranges) -> None:
    quantized = qdq.quantize(model, ranges, "tensorrt", exclude=["first", "second", "gram"])
    assert quantized.SerializeToString() == model.SerializeToString()


def test_unknown_exclusion_and_missing_range_are_refused(model, ranges) -> None:
    with pytest.raises(InputError, match="no matrix product of this graph: typo"):
        qdq.quantize(model, ranges, "x86", exclude=["typo"])
    del ranges["a"]
    with pytest.raises(InputError, match="no calibrated range for a, an input of second"):
        qdq.quantize(model, ranges, "x86")


def test_weight_scales_run_along_output_channels(model, ranges) -> None:
    quantized = qdq.quantize(model, ranges, "tensorrt")
    values = {item.name: numpy_helper.to_array(item) for item in quantized.graph.initializer}
    assert values["w/scale"].shape == (32,)
    assert values["wt/scale"].shape == (16,)
    np.testing.assert_allclose(values["w/int8"] * values["w/scale"], WEIGHTS["w"], atol=values["w/scale"].max() / 2)


@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (0.5, 4.0), (-7.0, -1.0)])
def test_zero_is_exact_in_both_schemes(low: float, high: float) -> None:
    for scheme in ("tensorrt", "x86"):
        scale, zero = qdq.affine(TensorRange(low, high, low, high, 10, 0.0), scheme)
        info = np.iinfo(zero.dtype)
        for value in (low, high, 0.0):
            q = np.clip(np.rint(value / scale) + zero, info.min, info.max)
            assert (q - zero) * scale == pytest.approx(value, abs=float(scale))
        assert info.min <= zero <= info.max


class TestValidator:
    def test_accepts_what_quantize_makes(self, model, ranges) -> None:
        qdq.validate_for_tensorrt(qdq.quantize(model, ranges, "tensorrt"))

    def test_refuses_the_x86_artefact(self, model, ranges) -> None:
        with pytest.raises(InputError, match="x/quantize: is UINT8"):
            qdq.validate_for_tensorrt(qdq.quantize(model, ranges, "x86"))

    def mutated(self, model, ranges, name: str, value: np.ndarray) -> onnx.ModelProto:
        quantized = qdq.quantize(model, ranges, "tensorrt")
        for item in quantized.graph.initializer:
            if item.name == name:
                item.CopyFrom(numpy_helper.from_array(value, name))
        return quantized

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("a/zero_point", np.array(3, np.int8), "a/quantize: zero point must be 0"),
            ("a/scale", np.array(0, np.float32), "a/quantize: every scale must be positive"),
            ("b/scale", np.ones(16, np.float32), "b/dequantize: activations are quantized per tensor"),
        ],
    )
    def test_names_the_node_and_the_rule(self, model, ranges, name, value, message) -> None:
        with pytest.raises(InputError, match=message):
            qdq.validate_for_tensorrt(self.mutated(model, ranges, name, value))

    def test_refuses_scales_on_the_wrong_axis(self, model, ranges) -> None:
        quantized = qdq.quantize(model, ranges, "tensorrt")
        node = next(node for node in quantized.graph.node if node.name == "w/dequantize")
        node.attribute[0].i = 0
        with pytest.raises(InputError, match="w/dequantize: weights of first need one scale per output channel"):
            qdq.validate_for_tensorrt(quantized)

    def test_refuses_a_pair_without_zero_point(self, model, ranges) -> None:
        quantized = qdq.quantize(model, ranges, "tensorrt")
        node = next(node for node in quantized.graph.node if node.name == "w/dequantize")
        del node.input[2]
        with pytest.raises(InputError, match="w/dequantize: has no zero point"):
            qdq.validate_for_tensorrt(quantized)
