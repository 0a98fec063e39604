"""The backbone: which network a bundle has, and its ONNX graph, traced by torch and cleaned of paths and versions."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

import onnx
import torch
from torch import nn

from ..chan_ref.backbone import REGION_DIM, load_backbone
from ..runtime.contract import Manifest, Preprocess
from ..runtime.errors import BundleError, MissingExtra
from .builder import IR_VERSION, OPSET, PRODUCER


@dataclass(frozen=True)
class Backbone:
    """A network from pictures to regions.

    Attributes:
        module: pixels [B, 3, size, size] -> regions [B, grid * grid, F], in evaluation mode.
        preprocess: how a picture becomes pixels.
    """

    module: nn.Module
    preprocess: Preprocess


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
        return None, f"left out: this model reads {region_dim}-d regions, the demo's backbone makes {REGION_DIM}-d ones"
    try:
        chosen = Backbone(*load_backbone())
    except MissingExtra as error:
        if wanted:
            raise
        return None, f"left out: {error}"
    return chosen, f"included; the bundle reads pictures too ({region_dim}-d regions)"


def backbone_of(manifest: Manifest) -> Backbone | None:
    """What the backbone of a bundle was exported from, for a parity check; None where the bundle has no backbone.

    Raises:
        MissingExtra: it is not installed.
    """
    return Backbone(*load_backbone()) if "backbone" in manifest.graphs else None


def backbone(source: Backbone, region_dim: int) -> onnx.ModelProto:
    """pixels -> regions, the batch dynamic, every node and weight named `backbone/...`.

    Raises:
        BundleError: the module does not map its pixels to grid * grid regions of `region_dim` features.
    """
    size, regions = source.preprocess.size, source.preprocess.grid**2
    # Two pictures, not one: torch.export would take a batch of 1 for a constant.
    example = torch.zeros(2, 3, size, size)
    with torch.no_grad():
        shape = tuple(source.module(example).shape)
    if shape != (2, regions, region_dim):
        raise BundleError(
            f"the backbone must map 2 pictures to [2, {regions}, {region_dim}], what this model reads, "
            f"got {list(shape)}: export the model without it"
        )
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
                output_names=["regions"],
                dynamic_shapes=({0: torch.export.Dim("B")},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    if program is None:
        raise BundleError("torch.onnx.export returned no program for the backbone")
    return _cleaned(program.model_proto)


def _cleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same computation without stack traces, paths, inferred shapes and versions; names scoped."""
    graph = model.graph
    boundary = {item.name for item in [*graph.input, *graph.output]}

    def scoped(name: str) -> str:
        return name if not name or name in boundary else "backbone/" + name.replace(".", "/")

    clean = onnx.GraphProto(name="backbone")
    for node in graph.node:
        copy = clean.node.add()
        copy.CopyFrom(node)
        del copy.metadata_props[:], copy.input[:], copy.output[:]
        copy.ClearField("doc_string")
        copy.input.extend(map(scoped, node.input))
        copy.output.extend(map(scoped, node.output))
        copy.name = "backbone/" + node.output[0].replace(".", "/")
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
    return onnx.helper.make_model(
        clean,
        producer_name=PRODUCER,
        ir_version=IR_VERSION,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    )
