"""`onnx:FILE`: any ONNX graph from pixels to regions, described by a small JSON file beside it.

FILE.onnx has one input [B, 3, S, S] float32 whose first axis is dynamic, and outputs as the package's docstring lists
them. FILE.json describes it:

    {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "grid": null, "boxes": "corners_in_pixels",
     "outputs": {"regions": "feat", "boxes": "rois"}}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from ...runtime.contract import Preprocess
from ...runtime.errors import InputError, reason_of
from ...runtime.manifest_rules import check_preprocess
from ...runtime.onnx_session import open_session
from ...runtime.strict_json import decode, read_json
from .base import OUTPUTS, Backbone

BoxForm = Literal["fractions", "corners", "corners_in_pixels"]


@dataclass(frozen=True)
class Description:
    """What an ONNX file does not say of itself.

    Attributes:
        mean, std: of each channel; a pixel is (x - mean) / std with x from 0 to 1.
        grid: regions are a grid x grid raster of the picture; None where the graph returns boxes.
        boxes: `fractions` for left, top, width and height as fractions of the picture, `corners` for left, top, right
            and bottom as fractions, `corners_in_pixels` for these in pixels.
        outputs: `regions`, `boxes` and `region_lengths` -> the names that the graph has for them; needed where these
            are others.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    grid: int | None = None
    boxes: BoxForm = "fractions"
    outputs: Mapping[str, str] = field(default_factory=dict)


class OnnxModule(nn.Module):
    """An ONNX graph as a module, run by onnxruntime.

    Attributes:
        model: input `pixels`, outputs named as in `base.OUTPUTS`, boxes as fractions.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self.model = model
        self._outputs = [item.name for item in model.graph.output]
        self._session = open_session(model.SerializeToString(), name="the backbone's graph")

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Run the graph."""
        found = self._session.run(self._outputs, {"pixels": pixels.contiguous().numpy()})
        return tuple(torch.from_numpy(array) for array in found)


def open_onnx(file: Path) -> Backbone:
    """Open an ONNX graph.

    Raises:
        InputError: the file or its description cannot be read, or its inputs and outputs are not those of a backbone.
    """
    if not file.is_file():
        raise InputError(f"{file} must be an ONNX file, got {'a folder' if file.is_dir() else 'nothing there'}")
    about = file.with_suffix(".json")
    try:
        raw = read_json(about)
    except OSError as error:
        example = '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "grid": null}'
        raise InputError(
            f"{about} must describe the preprocessing of {file.name}, such as {example}: {reason_of(error)}"
        ) from error
    except InputError as error:
        raise InputError(f"{about}: {error}") from error
    described = decode(Description, raw, str(about))
    try:
        model = onnx.load(file)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's, the checker's, the disk's
        raise InputError(f"{file} cannot be read as an ONNX file: {reason_of(error)}") from error
    size = _size(model, file)
    model = _named(model, described, file)
    if "boxes" in (item.name for item in model.graph.output):
        _as_fractions(model, described.boxes, size)
    preprocess = Preprocess(size, described.mean, described.std, described.grid)
    check_preprocess(preprocess, str(about))
    try:
        module = OnnxModule(model)
    except Exception as error:  # onnxruntime's exceptions share no base
        raise InputError(f"{file} does not run in onnxruntime: {reason_of(error)}") from error
    return Backbone(module.eval(), preprocess, f"onnx:{file.name}")


def _size(model: onnx.ModelProto, file: Path) -> int:
    """S, from the graph's one input [B, 3, S, S]."""
    weights = {item.name for item in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in weights]
    shapes = [[axis.dim_value or axis.dim_param for axis in item.type.tensor_type.shape.dim] for item in inputs]
    wanted = f"{file} must have one input [B, 3, S, S] float32 with B dynamic and S fixed"
    if len(inputs) != 1:
        raise InputError(f"{wanted}, got {[item.name for item in inputs]}")
    shape = shapes[0]
    kind = TensorProto.DataType.Name(inputs[0].type.tensor_type.elem_type).lower()
    fixed = len(shape) == 4 and shape[1] == 3 and isinstance(shape[2], int) and shape[2] == shape[3]
    if not (kind == "float" and fixed and isinstance(shape[0], str)):
        raise InputError(f"{wanted}, got {shape} {'float32' if kind == 'float' else kind}")
    return int(shape[2])


def _named(model: onnx.ModelProto, described: Description, file: Path) -> onnx.ModelProto:
    """The graph with the names that every backbone has, and none of its other outputs."""
    unknown = sorted(set(described.outputs) - set(OUTPUTS))
    if unknown:
        raise InputError(f"{file}: outputs must be of {', '.join(OUTPUTS)}, got {unknown[0]!r}")
    there = {item.name: item for item in model.graph.output}
    wanted = {name: described.outputs.get(name, name) for name in OUTPUTS}
    missing = [theirs for name, theirs in wanted.items() if theirs not in there and name in described.outputs]
    if wanted["regions"] not in there or missing:
        needed = missing[0] if missing else wanted["regions"]
        raise InputError(f"{file} must have an output {needed!r}; it has {', '.join(there)}. Name others in `outputs`")
    kept = {theirs: name for name, theirs in wanted.items() if theirs in there}
    weights = {item.name for item in model.graph.initializer}
    (entry,) = (item.name for item in model.graph.input if item.name not in weights)
    return _renamed(model, {**kept, entry: "pixels"}, list(kept), weights)


def _renamed(
    model: onnx.ModelProto, names: Mapping[str, str], outputs: list[str], weights: set[str]
) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    taken = set(names.values()) - set(names)  # names of inner values that would clash
    every = {**{value: f"inner/{value}" for value in taken}, **names}
    for node in graph.node:
        node.input[:] = [every.get(value, value) for value in node.input]
        node.output[:] = [every.get(value, value) for value in node.output]
    for tensor in graph.initializer:
        tensor.name = every.get(tensor.name, tensor.name)
    del graph.value_info[:]
    by_name = {item.name: item for item in graph.output}
    chosen = [by_name[name] for name in outputs]
    entries = [item for item in graph.input if item.name not in weights]
    for item in [*entries, *chosen]:
        item.name = every.get(item.name, item.name)
    chosen, entries = [_copy(item) for item in chosen], [_copy(item) for item in entries]
    del graph.output[:], graph.input[:]
    graph.output.extend(chosen)
    graph.input.extend(entries)
    return result


def _copy(info: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(info)
    return copy


def _as_fractions(model: onnx.ModelProto, form: BoxForm, size: int) -> None:
    """Append what turns the graph's boxes into left, top, width and height as fractions of the picture."""
    if form == "fractions":
        return
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["boxes/corners" if value == "boxes" else value for value in node.output]
        node.input[:] = ["boxes/corners" if value == "boxes" else value for value in node.input]

    def constant(name: str, values: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(torch.tensor(values).numpy(), name))
        return name

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    corners = "boxes/corners"
    if form == "corners_in_pixels":
        corners = add("Div", [corners, constant("boxes/size", float(size))], "boxes/scaled")
    halves = [constant(f"boxes/{place}", [place]) for place in (0, 2, 4)]
    axis = constant("boxes/axis", [2])
    start = add("Slice", [corners, halves[0], halves[1], axis], "boxes/start")
    end = add("Slice", [corners, halves[1], halves[2], axis], "boxes/end")
    extent = add("Sub", [end, start], "boxes/extent")
    add("Concat", [start, extent], "boxes", axis=2)
