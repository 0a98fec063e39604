"""The int8 GRU against torch's."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from chan_rt.calibration.ranges import TensorRange
from chan_rt.calibration.recurrence import find_grus, quantize_gru
from chan_rt.runtime.errors import InputError

WORD, HIDDEN = 24, 64


@pytest.fixture(scope="module")
def gru() -> torch.nn.GRU:
    torch.manual_seed(0)
    return torch.nn.GRU(WORD, HIDDEN)


@pytest.fixture
def model(gru: torch.nn.GRU) -> onnx.ModelProto:
    def zrn(tensor: torch.Tensor) -> np.ndarray:
        r, z, n = np.split(tensor.detach().numpy(), 3)
        return np.concatenate([z, r, n])[None]

    initializers = {
        "w": zrn(gru.weight_ih_l0),
        "r": zrn(gru.weight_hh_l0),
        "b": np.concatenate([zrn(gru.bias_ih_l0), zrn(gru.bias_hh_l0)], 1),
    }
    node = helper.make_node("GRU", ["x", "w", "r", "b"], ["y"], name="gru", hidden_size=HIDDEN, linear_before_reset=1)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["W", "B", WORD])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["W", 1, "B", HIDDEN])],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


RANGES = {"y": TensorRange(-0.9, 0.9, -0.9, 0.9, 100, 0.0)}


@pytest.mark.parametrize(("words", "batch"), [(1, 1), (12, 1), (7, 5)])
def test_states_agree_with_torch(model: onnx.ModelProto, gru: torch.nn.GRU, words: int, batch: int) -> None:
    quantize_gru(model, "gru", RANGES)
    onnx.checker.check_model(model)
    assert find_grus(model) == []
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(words).standard_normal((words, batch, WORD)).astype(np.float32)
    with torch.inference_mode():
        expected = gru(torch.from_numpy(x))[0].numpy()
    (found,) = session.run(None, {"x": x})
    assert found.shape == (words, 1, batch, HIDDEN)
    norms = np.linalg.norm(found[:, 0], axis=-1) * np.linalg.norm(expected, axis=-1)
    assert ((found[:, 0] * expected).sum(-1) / norms).min() > 0.999


def test_result_does_not_depend_on_the_batch(model: onnx.ModelProto) -> None:
    quantize_gru(model, "gru", RANGES)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(3).standard_normal((9, 4, WORD)).astype(np.float32)
    x[:, 1] *= 50
    together = session.run(None, {"x": x})[0]
    alone = session.run(None, {"x": x[:, :1]})[0]
    np.testing.assert_allclose(together[:, :, :1], alone, rtol=0, atol=1e-6)


def test_what_cannot_be_quantized_is_refused(model: onnx.ModelProto) -> None:
    with pytest.raises(InputError, match="no GRU named 'other'"):
        quantize_gru(model, "other", RANGES)
    with pytest.raises(InputError, match="no calibrated range for y"):
        quantize_gru(model, "gru", {})
    model.graph.node[0].attribute.append(helper.make_attribute("direction", "reverse"))
    with pytest.raises(InputError, match="only forward GRUs"):
        quantize_gru(model, "gru", RANGES)
