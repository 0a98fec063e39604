"""Models written byte by byte are what `onnx` reads; what is read byte by byte is what `onnx` wrote."""

from __future__ import annotations

import contextlib

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from chan_rt.runtime import onnx_bytes
from chan_rt.runtime.onnx_bytes import IntegerProduct, read_integer_products


def _read(model: onnx.ModelProto) -> list[tuple[str, str, bool]]:
    products = read_integer_products(memoryview(model.SerializeToString()))
    return [(product.operator, product.output, product.local) for product in products]


def _model(nodes: list[onnx.NodeProto], constants: tuple[str, ...] = ()) -> onnx.ModelProto:
    tensors = [helper.make_tensor(name, TensorProto.INT8, [1], [1]) for name in constants]
    return helper.make_model(helper.make_graph(nodes, "g", [], [], tensors))


def test_a_written_model_is_valid() -> None:
    written = onnx_bytes.model(
        [onnx_bytes.node("MatMulInteger", ["a", "b"], ["y"])],
        [onnx_bytes.constant("b", onnx_bytes.INT8, (2, 1), b"\x01\xff")],
        [onnx_bytes.value("a", onnx_bytes.UINT8, "N", 2)],
        onnx_bytes.value("y", onnx_bytes.INT32, "N", 1),
    )
    model = onnx.load_from_string(written)
    onnx.checker.check_model(model, full_check=True)
    assert numpy_helper.to_array(model.graph.initializer[0]).tolist() == [[1], [-1]]
    assert [axis.dim_param or axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim] == ["N", 2]
    assert read_integer_products(memoryview(written)) == [IntegerProduct("MatMulInteger", "y", False)]


def test_where_the_weights_are() -> None:
    nodes = [
        helper.make_node("Constant", [], ["made"], value_int=1),
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["dw"]),
        helper.make_node("DequantizeLinear", ["elsewhere", "s", "z"], ["de"]),
        helper.make_node("MatMulInteger", ["q", "w", "z", "z"], ["m1"]),
        helper.make_node("MatMulInteger", ["q", "made", "z", "z"], ["m2"]),
        helper.make_node("MatMulInteger", ["w", "q", "z", "z"], ["m3"]),
        helper.make_node("MatMulInteger", ["q", "w"], ["without1"]),
        helper.make_node("MatMulIntegerToFloat", ["q", "w", "s", "s", "z", "", "b"], ["without2"]),
        helper.make_node("DequantizeLinear", ["w", "s"], ["without3"]),
        helper.make_node("QLinearMatMul", ["q", "s", "z", "w", "s", "z", "s", "z"], ["m4"]),
        helper.make_node("MatMul", ["d", "dw"], ["f"]),
    ]
    assert _read(_model(nodes, ("w",))) == [
        ("DequantizeLinear", "d", True),
        ("DequantizeLinear", "dw", True),
        ("DequantizeLinear", "de", False),
        ("MatMulInteger", "m1", True),
        ("MatMulInteger", "m2", True),
        ("MatMulInteger", "m3", False),
        ("MatMulInteger", "without1", False),
        ("MatMulIntegerToFloat", "without2", False),
        ("DequantizeLinear", "without3", False),
        ("QLinearMatMul", "m4", True),
    ]


def test_bodies_are_read_and_do_not_see_the_constants_around_them() -> None:
    def nested(depth: int) -> list[onnx.NodeProto]:
        body = helper.make_graph(
            [helper.make_node("MatMulInteger", ["q", "w", "z", "z"], [f"outer{depth}"]),
             helper.make_node("MatMulInteger", ["q", "own", "z", "z"], [f"own{depth}"]),
             *(nested(depth - 1) if depth > 1 else [])],
            "body", [], [], [helper.make_tensor("own", TensorProto.INT8, [1], [1])],
        )  # fmt: skip
        return [helper.make_node("If", ["c"], ["o"], then_branch=body, else_branch=helper.make_graph([], "e", [], []))]

    expected = [("MatMulInteger", f"{kind}{depth}", kind == "own") for depth in (2, 1) for kind in ("outer", "own")]
    assert _read(_model(nested(2), ("w",))) == expected
    with pytest.raises(ValueError, match="nested at most 16 deep"):
        _read(_model(nested(20)))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError):  # UnicodeDecodeError is one
        read_integer_products(memoryview(data))


@given(st.data())
def test_a_damaged_model_is_read_or_refused(data: st.DataObject) -> None:
    whole = bytearray(_model([helper.make_node("MatMulInteger", ["q", "w"], ["m"])], ("w",)).SerializeToString())
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        read_integer_products(memoryview(bytes(whole[: data.draw(st.integers(0, len(whole)))])))
