"""Mixed-precision plans, which name the layers that stay in float32, and the int8 graphs that follow from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from ..runtime.errors import InputError, reason_of
from ..runtime.strict_json import decode, read_json, show
from .qdq import Scheme, find_sites, quantize, validate_for_tensorrt
from .ranges import TensorRange
from .recurrence import find_grus, quantize_gru

SCHEMA = 1
_COARSE = 8  # Convs that make maps of more than an eighth of the picture's size stay float32


@dataclass(frozen=True)
class Plan:
    """A mixed-precision plan.

    Attributes:
        exclude: graph name -> names of the nodes (products and GRUs) that stay float32. A graph that is not named is
            quantized as without a plan: only its products of two activations and its first Convs stay float32.
    """

    exclude: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def excluded(self, graph: str, model: onnx.ModelProto) -> tuple[str, ...]:
        """What stays float32 in a graph; `model` is its float32 form."""
        if graph in self.exclude:
            return self.exclude[graph]
        return (*products_of_activations(model), *first_convolutions(model))

    def to_json(self) -> str:
        """Return the plan as canonical JSON."""
        exclude = {graph: sorted(nodes) for graph, nodes in self.exclude.items()}
        return json.dumps({"schema": SCHEMA, "exclude": exclude}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_file(cls, path: str | Path) -> Plan:
        """Read a file of `to_json`'s text; the InputError names what does not fit."""
        try:
            fields = decode(dict[str, Any], read_json(Path(path)), "plan")
            if fields.get("schema") != SCHEMA:
                raise InputError(f"schema must be {SCHEMA}, got {show(fields.get('schema'))}")
            exclude = decode(dict[str, list[str]], fields.get("exclude"), "plan.exclude")
        except OSError as error:
            raise InputError(f"cannot read the plan {path}: {reason_of(error)}") from error
        except InputError as error:
            raise InputError(f"{path} is not a plan written by chan sensitivity: {error}") from error
        return cls({graph: tuple(nodes) for graph, nodes in exclude.items()})


def find_layers(model: onnx.ModelProto, scheme: Scheme) -> list[str]:
    """Return the names of the nodes that a scheme can quantize, in graph order.

    These are matrix products, and on x86 GRUs and Convs as well.
    """
    layers = {site.node for site in find_sites(model) if scheme == "x86" or not site.convolution}
    if scheme == "x86":
        layers |= {node.name for node in find_grus(model)}
    return [node.name for node in model.graph.node if node.name in layers]


def products_of_activations(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the products without a constant operand: the two of attention, and the region-word similarities.

    They stay float32 unless a plan includes them: no operand can be packed in advance, and attention over 36 regions is
    1 % of the region encoder's multiplications at 2048 -> 1024.
    """
    return tuple(site.node for site in find_sites(model) if not site.weights)


def first_convolutions(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the Convs in front of the first that makes a map of at most an eighth of the picture's size.

    They have few channels and lose most: int8 in all of efficientnet-lite0's Convs left a least cosine of 0.62 between
    regions, with its first ten in float32 it is 0.95 (docs/int8-figures.md).
    """
    convolutions = [site for site in find_sites(model) if site.convolution]
    if not convolutions:
        return ()
    inferred = onnx.shape_inference.infer_shapes(model).graph
    height = {
        item.name: item.type.tensor_type.shape.dim[2].dim_value
        for item in (*inferred.value_info, *inferred.input, *inferred.output)
        if len(item.type.tensor_type.shape.dim) == 4
    }
    made = {node.name: node.output[0] for node in model.graph.node}
    size = height[model.graph.input[0].name]
    coarse = [0 < _COARSE * height.get(made[site.node], 0) <= size for site in convolutions]
    first = coarse.index(True) if True in coarse else len(coarse)
    return tuple(site.node for site in convolutions[:first])


def to_int8(
    model: onnx.ModelProto, ranges: Mapping[str, TensorRange], scheme: Scheme, exclude: tuple[str, ...]
) -> onnx.ModelProto:
    """Make the int8 artifact of a float32 graph.

    Args:
        model: the float32 graph.
        ranges: ranges of its activations, by tensor name.
        scheme: `tensorrt` (explicit symmetric Q/DQ, validated) or `x86` (for onnxruntime; GRUs become int8 Scans, and
            Convs are quantized too).
        exclude: names of layers to leave in float32.

    Raises:
        InputError: a name in `exclude` is not a layer of this graph, or a range is missing.
    """
    unknown = set(exclude) - set(find_layers(model, "x86"))
    if unknown:
        raise InputError(f"exclude names no layer of this graph: {', '.join(sorted(unknown))}")
    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    if scheme == "x86":
        for node in find_grus(model):
            if node.name not in exclude:
                quantize_gru(prepared, node.name, ranges)
    products = {site.node for site in find_sites(prepared)}
    layers = set(find_layers(prepared, scheme))
    quantized = quantize(prepared, ranges, scheme, [name for name in products if name in exclude or name not in layers])
    if scheme == "tensorrt":
        validate_for_tensorrt(quantized)
    return quantized
