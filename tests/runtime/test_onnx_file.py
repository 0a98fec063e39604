"""External data is found wherever ONNX allows a tensor, and damaged files end in one error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from chan_rt.runtime.contract import sha256_file, verified
from chan_rt.runtime.errors import BundleError
from chan_rt.runtime.onnx_file import refuse_external_data


def weight(name: str, external: bool) -> TensorProto:
    tensor = numpy_helper.from_array(np.arange(300, dtype=np.float32), name)
    if external:
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights")
        tensor.ClearField("raw_data")
    return tensor


def make(place: str, external: bool) -> onnx.ModelProto:
    """A model with one tensor named `w` at a place."""
    tensor = weight("w", external)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [300]) for name in "xy")
    inner = helper.make_graph([helper.make_node("Identity", ["w"], ["inner"])], "inner", [], [y], [tensor])
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["inner"])], "other", [], [y])
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=other)
    sparse = onnx.SparseTensorProto(values=tensor, indices=numpy_helper.from_array(np.arange(300)), dims=[400])
    nodes = {"constant": [constant], "branch": [branch]}.get(place, [helper.make_node("Add", ["x", "w"], ["y"])])
    graph = helper.make_graph(nodes, "g", [x], [y], [tensor] if place == "initializer" else [])
    if place == "sparse":
        graph.sparse_initializer.append(sparse)
    model = helper.make_model(graph)
    if place == "function":
        model.functions.append(helper.make_function("d", "f", [], ["c"], [constant], []))
    if place == "training":
        model.training_info.add().algorithm.CopyFrom(inner)
    return model


@pytest.mark.parametrize("place", ["initializer", "constant", "branch", "sparse", "function", "training"])
def test_a_tensor_in_another_file_is_found(tmp_path: Path, place: str) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(make(place, external=False).SerializeToString())
    assert verified(tmp_path, "graph.onnx", sha256_file(path)) == path
    path.write_bytes(make(place, external=True).SerializeToString())
    with pytest.raises(BundleError, match=r"graph.onnx keeps the tensor 'w' in another file"):
        verified(tmp_path, "graph.onnx", sha256_file(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot mmap an empty file"),
        (b"\xff" * 20, "at most 10 bytes"),
        (b"\x3a\x7f", "longer than its message"),
        (b"\x3b", "fields of kind 3"),
        (b"\x3a" + bytes([126]) + b"\x0a\x7c\x2a\x7a\x32\x78\x0a\x76" + b"\x2a\x74" * 60, "longer than its message"),
    ],
)
def test_what_is_no_onnx_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "graph.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=f"graph.onnx is not a readable ONNX file: .*{message}"):
        refuse_external_data(tmp_path / "graph.onnx")


def test_graphs_within_graphs_have_a_limit(tmp_path: Path) -> None:
    graph = helper.make_graph([], "g", [], [])
    for _ in range(20):
        graph = helper.make_graph([helper.make_node("If", [], [], then_branch=graph)], "g", [], [])
    (tmp_path / "graph.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(BundleError, match="nested deeper than 32 levels"):
        refuse_external_data(tmp_path / "graph.onnx")


def test_no_change_of_a_byte_crashes(tmp_path: Path) -> None:
    whole = make("branch", external=False).SerializeToString()
    small = whole[:60] + whole[-60:]
    rng = np.random.default_rng(0)
    for turn in range(400):
        content = bytearray(whole if turn % 2 else small)
        for at in rng.integers(0, len(content), rng.integers(1, 5)):
            content[at] = rng.integers(0, 256)
        (tmp_path / "graph.onnx").write_bytes(content[: rng.integers(1, len(content) + 1)])
        try:
            refuse_external_data(tmp_path / "graph.onnx")
        except BundleError:
            continue
