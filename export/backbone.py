"""The backbone's ONNX graph, traced by torch and cleaned of what would differ between machines or days."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

import onnx
import torch
from torch import nn

from ..runtime.contract import Preprocess
from ..runtime.errors import BundleError
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
