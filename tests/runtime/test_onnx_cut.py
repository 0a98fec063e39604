"""A model that is cut at its Scans computes what the whole does."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from chan_rt.runtime.onnx_cut import Cut, cut_at_scans


def _info(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _scan(name: str, source: str, kind: int = TensorProto.FLOAT) -> onnx.NodeProto:
    """Running sums of `source` [W, 3], times `factor`, which the body takes from the graph around it."""
    nodes = [
        helper.make_node("Mul", ["x", f"{name}/factor"], ["scaled"]),
        helper.make_node("Add", ["before", "scaled"], ["after"]),
        helper.make_node("Cast", ["after"], ["seen"], to=kind),
    ]
    body = helper.make_graph(
        nodes, name, [_info("before", 3), _info("x", 3)], [_info("after", 3), _info("seen", 3, kind=kind)]
    )
    return helper.make_node("Scan", ["zeros", source], [f"{name}/last", f"{name}/all"], body=body, num_scan_inputs=1)


def _model(nodes: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
    constants = {"zeros": np.zeros(3, np.float32), "unused": np.ones(1000, np.float32)}
    constants |= {f"{name}/factor": np.float32(value) for name, value in (("a", 2), ("b", 3), ("c", 5))}
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(
        nodes, "g", [_info("x", "W", 3), _info("n", kind=TensorProto.INT64)], outputs, initializers
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def _two(kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """y = what two Scans made of exp(x) and -exp(x), and last = the last state of the second, plus n."""
    nodes = [
        helper.make_node("Exp", ["x"], ["e"]),
        helper.make_node("Neg", ["e"], ["m"]),
        _scan("a", "e", kind),
        _scan("b", "m", kind),
        helper.make_node("Cast", ["n"], ["float_n"], to=1),
        helper.make_node("Add", ["a/all", "b/all"], ["y"]),
        helper.make_node("Add", ["b/last", "float_n"], ["last"]),
        helper.make_node("Identity", ["unused"], ["nothing"]),
    ]
    return _model(nodes, [_info("y", "W", 3, kind=kind), _info("last", 3)])


def _cut(model: onnx.ModelProto) -> Cut | None:
    return cut_at_scans(memoryview(model.SerializeToString()))


def _run(serialized: bytes, feeds: dict[str, np.ndarray], names: list[str] | None = None) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(serialized, providers=["CPUExecutionProvider"])
    return session.run(names, feeds)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_the_pieces_together_compute_the_whole(kind: int) -> None:
    model = _two(kind)
    cut = _cut(model)
    assert cut is not None
    assert cut.made == (("a/all",), ("b/last", "b/all"))
    feeds = {"x": np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32), "n": np.array(7)}
    given: dict[str, np.ndarray] = dict(feeds)
    for piece, names in zip(cut.branches, cut.made, strict=True):
        given |= dict(zip(names, _run(piece, feeds), strict=True))
    for found, expected in zip(_run(cut.rest, given), _run(model.SerializeToString(), feeds), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype


def test_a_piece_holds_only_what_it_needs_and_all_inputs() -> None:
    cut = _cut(_two())
    assert cut is not None
    pieces = [onnx.load_from_string(piece) for piece in (*cut.branches, cut.rest)]
    for piece in pieces:
        assert [item.name for item in piece.graph.input][:2] == ["x", "n"]
    assert [[node.op_type for node in piece.graph.node] for piece in pieces] == [
        ["Exp", "Scan"],
        ["Exp", "Neg", "Scan"],
        ["Cast", "Add", "Add"],
    ]
    assert [[item.name for item in piece.graph.initializer] for piece in pieces] == [
        ["zeros", "a/factor"],
        ["zeros", "b/factor"],
        [],
    ]
    assert [item.name for item in pieces[2].graph.output] == ["y", "last"]


def test_what_has_no_branches_is_not_cut() -> None:
    one = _model([_scan("a", "x"), helper.make_node("Neg", ["a/all"], ["y"])], [_info("y", "W", 3)])
    chained = [_scan("a", "x"), helper.make_node("Neg", ["a/all"], ["m"]), _scan("b", "m")]
    chain = _model([*chained, helper.make_node("Neg", ["b/all"], ["y"])], [_info("y", "W", 3)])
    direct = _model([_scan("a", "x"), _scan("b", "x")], [_info("a/all", "W", 3), _info("b/all", "W", 3)])
    for model in (one, chain, direct):
        onnx.checker.check_model(model)
        assert _cut(model) is None


def test_of_three_scans_one_may_not_depend_on_another() -> None:
    three = [_scan(name, "x") for name in "abc"]
    total = helper.make_node("Sum", ["a/all", "b/all", "c/all"], ["y"])
    cut = _cut(_model([*three, total], [_info("y", "W", 3)]))
    assert cut is not None
    assert len(cut.branches) == 3
    assert _cut(_model([*three[:2], _scan("c", "a/all"), total], [_info("y", "W", 3)])) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError):  # UnicodeDecodeError is one
        cut_at_scans(memoryview(data))


WHOLE = _two().SerializeToString()


@given(st.data())
def test_a_damaged_model_is_read_or_refused(data: st.DataObject) -> None:
    damaged = bytearray(WHOLE)
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        cut_at_scans(memoryview(bytes(damaged[: data.draw(st.integers(0, len(damaged)))])))
