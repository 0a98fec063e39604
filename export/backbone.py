"""The backbone: which network a bundle has, and its ONNX graph, traced by torch and cleaned of paths and versions."""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import onnx
import onnxscript
import torch
from onnx import TensorProto, helper
from torch import nn

from ..chan_ref.backbone import REGION_DIM, load_backbone
from ..chan_ref.backbones.base import CLASS_SCORES, OUTPUTS, Backbone, frozen, named
from ..chan_ref.backbones.names import LITES
from ..chan_ref.backbones.onnx_files import OnnxModule
from ..chan_ref.backbones.suppression import keep_boxes
from ..runtime.contract import Manifest
from ..runtime.errors import BundleError, MissingExtra
from .builder import FP32_SCOPES, IR_VERSION, OPSET, PRODUCER
from .fold import fold_batch_norms

_op = onnxscript.values.Opset("", OPSET)


def choose_backbone(region_dim: int, wanted: bool | None = None) -> tuple[Backbone | None, str]:
    """The network from pictures to regions that a bundle of this model can have, and the decision in words.

    Args:
        region_dim: width of the regions that the model reads.
        wanted: whether the bundle must have it; None for yes where it is installed and fits the model.

    Raises:
        MissingExtra: it is wanted and not installed.
    """
    if wanted is False:
        return None, "left out as asked; the bundle reads region features"
    if region_dim != REGION_DIM and not wanted:
        return None, (
            f"left out: this model reads {region_dim}-d regions, the demo's backbone makes {REGION_DIM}-d ones; "
            "--backbone NAME includes another"
        )
    try:
        chosen = Backbone(*load_backbone(), LITES[0])
    except MissingExtra as error:
        if wanted:
            raise
        return None, f"left out: {error}"
    return chosen, included(chosen, region_dim)


def included(backbone: Backbone, region_dim: int) -> str:
    """The decision for a backbone, in words."""
    return f"{backbone.name} included; the bundle reads pictures too ({region_dim}-d regions)"


def backbone_of(manifest: Manifest) -> Backbone | None:
    """What the backbone of a bundle was exported from, for a parity check.

    Returns:
        One of the networks that come with their weights; None where the bundle has another, or none: what a bundle
        names is never imported.

    Raises:
        MissingExtra: it is not installed.
    """
    name = manifest.backbone or LITES[0]
    if "backbone" not in manifest.graphs or name not in LITES:
        return None
    return Backbone(*load_backbone(name), name)


def backbone(source: Backbone, region_dim: int) -> onnx.ModelProto:
    """pixels -> regions, and boxes and region_lengths where the network returns these; the batch is dynamic.

    Every node and weight is named `backbone/...`.

    Raises:
        BundleError: the module does not map its pixels to regions of `region_dim` features, or cannot be traced.
    """
    size, grid = source.preprocess.size, source.preprocess.grid
    # Two pictures, not one: torch.export would take a batch of 1 for a constant.
    example = torch.zeros(2, 3, size, size)
    with torch.no_grad():
        found = named(source.module(example), source.name)
    if CLASS_SCORES in found:
        source = replace(source, module=frozen(_GraphOutputs(source.module, source.name)))
        found = {name: tensor for name, tensor in found.items() if name != CLASS_SCORES}
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    count = shapes["regions"][1] if len(shapes["regions"]) == 3 else 0
    count = count if grid is None else grid**2
    wanted = {"regions": (2, count, region_dim), "boxes": (2, count, 4), "region_lengths": (2,)}
    needed = {"regions"} if grid is not None else {"regions", "boxes"}
    for name in needed | set(shapes):
        if shapes.get(name) != wanted[name] or not count:
            expected = f"[2, {count or 'R'}, {region_dim}]" if name == "regions" else f"{list(wanted[name])} as {name}"
            rule = f"2 pictures to {expected}"
            raise BundleError(
                f"the backbone must map {rule}, what this model reads, got {list(shapes.get(name, ()))}: "
                "export the model without it (--no-backbone), or train it on the features of this backbone"
            )
    if isinstance(source.module, OnnxModule):
        return _adopted(source.module.model, {name: wanted[name] for name in found})
    return _cleaned(_traced(source, example, list(found)), {name: wanted[name] for name in found}, source.module)


class _GraphOutputs(nn.Module):
    """A backbone without its class scores, which a gallery does not keep."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.module = module
        self.name = name

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute what a graph returns."""
        found = named(self.module(pixels), self.name)
        return tuple(found[name] for name in OUTPUTS if name in found)


def _traced(source: Backbone, example: torch.Tensor, outputs: Sequence[str]) -> onnx.ModelProto:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        # It warns of the missing torchvision and of its own deprecations: nothing a caller can act on.
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                source.module,
                (example,),
                input_names=["pixels"],
                output_names=list(outputs),
                dynamic_shapes=({0: torch.export.Dim("B")},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
                custom_translation_table={keep_boxes._opoverload: _keep_boxes},
            )
    except Exception as error:  # of whatever in the network cannot be traced
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise BundleError(
            f"the backbone {source.name} cannot be traced into an ONNX graph ({type(error).__name__}: {first}): use it "
            "with `chan features` and `chan index --backbone`, and export the model with --no-backbone"
        ) from error
    finally:
        logger.setLevel(level)
    if program is None:
        raise BundleError("torch.onnx.export returned no program for the backbone")
    model = program.model_proto
    if not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise BundleError(
            f"the backbone {source.name} must take any number of pictures, and its graph takes only the 2 that it was "
            "traced with: something in its forward makes the batch a constant, such as len(pixels), where "
            "pixels.shape[0] does not"
        )
    return model


def _keep_boxes(boxes: Any, scores: Any, threshold: float) -> Any:
    """`chan_ref.backbones.suppression.keep_boxes` in ONNX: [B, N, 4], [B, C, N] -> [B, C, N] bool."""
    most = _op.Shape(boxes, start=1, end=2)
    limit = _op.Constant(value_floats=[threshold])
    chosen = _op.NonMaxSuppression(boxes, scores, most, limit)  # [kept, 3]
    none = _op.Expand(_op.Constant(value=helper.make_tensor("", TensorProto.BOOL, [], [False])), _op.Shape(scores))
    true = _op.Expand(
        _op.Constant(value=helper.make_tensor("", TensorProto.BOOL, [], [True])), _op.Shape(chosen, start=0, end=1)
    )
    return _op.ScatterND(none, chosen, true)


def _cleaned(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], module: nn.Module) -> onnx.ModelProto:
    """The same computation without stack traces, paths, inferred shapes and versions; names scoped.

    Nodes of a module with the attribute `single`, and of those inside it, are in a scope that stays float32.
    """
    graph = model.graph
    single = {name for name, part in module.named_modules() if getattr(part, "single", False)}
    boundary = {item.name for item in [*graph.input, *graph.output]}

    def scoped(name: str) -> str:
        return name if not name or name in boundary else "backbone/" + name.replace(".", "/")

    clean = onnx.GraphProto(name="backbone")
    for node in graph.node:
        copy = clean.node.add()
        copy.CopyFrom(node)
        island = f"{FP32_SCOPES[0]}/" if single.intersection(_modules(node)) else ""
        del copy.metadata_props[:], copy.input[:], copy.output[:]
        copy.ClearField("doc_string")
        copy.input.extend(map(scoped, node.input))
        copy.output.extend(map(scoped, node.output))
        copy.name = f"backbone/{island}" + node.output[0].replace(".", "/")
    for tensor in graph.initializer:
        copy = clean.initializer.add()
        copy.CopyFrom(tensor)
        del copy.metadata_props[:]
        copy.ClearField("doc_string")
        copy.name = scoped(tensor.name)
    for source, target in ((graph.input, clean.input), (graph.output, clean.output)):
        for info in source:
            copy = target.add(name=info.name)
            copy.type.CopyFrom(info.type)
    return _finished(clean, shapes, [helper.make_opsetid("", OPSET)])


def _modules(node: onnx.NodeProto) -> list[str]:
    """Names of the modules that a traced node belongs to, outermost first."""
    scopes = next((item.value for item in node.metadata_props if item.key == "pkg.torch.onnx.name_scopes"), "[]")
    found: list[str] = ast.literal_eval(scopes)
    return found


def _adopted(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """Somebody's graph as a bundle has graphs: named nodes, constants as initializers, the batch called B.

    Batch norms are folded into Convs, as torch's exporter does with what it traces.
    """
    graph = onnx.GraphProto(name="backbone")
    weights = {item.name for item in model.graph.initializer}
    graph.initializer.extend(model.graph.initializer)
    for node in model.graph.node:
        value = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            graph.initializer.append(value)
            graph.initializer[-1].name = node.output[0]
            continue
        graph.node.append(node)
    graph.input.extend(item for item in model.graph.input if item.name not in weights)
    graph.output.extend(model.graph.output)
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = "B"
    adopted = _finished(graph, shapes, list(model.opset_import))
    fold_batch_norms(adopted)
    for node in adopted.graph.node:
        node.name = "backbone/" + node.output[0]
        node.ClearField("doc_string")
    return adopted


def _finished(
    graph: onnx.GraphProto, shapes: Mapping[str, tuple[int, ...]], opsets: Sequence[onnx.OperatorSetIdProto]
) -> onnx.ModelProto:
    """The model of a graph, its outputs with the sizes that they were seen to have."""
    for info in graph.output:
        shape = info.type.tensor_type.shape
        del shape.dim[:]
        for axis, size in enumerate(shapes[info.name]):
            dim = shape.dim.add()
            if axis:
                dim.dim_value = size
            else:
                dim.dim_param = "B"
    return helper.make_model(graph, producer_name=PRODUCER, ir_version=IR_VERSION, opset_imports=list(opsets))
