"""A checkpoint becomes a bundle: every graph at every precision, checked, with the tokenizer and the manifest.

BUNDLE/
├── manifest.json              sizes, hashes, ranges and versions: `runtime.contract.Manifest`
├── graphs/PRECISION/NAME.onnx
└── tokenizer/                 the checkpoint's files
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx
from onnx import helper

from ..chan_ref.backbones.base import Backbone
from ..chan_ref.checkpoint import Checkpoint
from ..chan_ref.checkpoint import load as load_checkpoint
from ..chan_ref.config import ModelConfig
from ..chan_ref.inference import open_tokenizer
from ..runtime.checks import check_choices
from ..runtime.contract import (
    GraphName,
    GraphSpec,
    Manifest,
    Range,
    TensorSpec,
    TokenizerSpec,
    sha256_file,
    write_manifest,
)
from ..runtime.errors import BundleError, InputError
from ..runtime.files import atomic_folder
from .backbone import backbone as backbone_graph
from .check import Case, check_graph, make_cases
from .graphs import build_graphs
from .place import check_place
from .precision import to_half

_log = logging.getLogger(__name__)

# The pass that makes each precision of a float32 graph.
CONVERT: Mapping[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {"fp32": lambda model: model, "fp16": to_half}
PROTOBUF_LIMIT = 2**31 - 1
# Sizes an engine is tuned for. The alignment holds I x R x C x W similarities at once: at these maxima 0.4 G of them,
# 1.7 GB in float32; at the tuned sizes 38 MB. Larger galleries go through in blocks.
RANGES: Mapping[str, Range] = {
    "B": Range(1, 32, 256),
    "R": Range(1, 36, 100),
    "W": Range(1, 16, 128),
    "I": Range(1, 128, 256),
    "C": Range(1, 64, 128),
}
MOST = 1 << 16  # of max_regions and of max_words
# A picture of 384 x 384 is a thousand times a caption. A detector reads 300 proposals of a picture at every level of
# its pyramid, 0.7 GB of them.
BACKBONE_BATCH = Range(1, 8, 32)
DETECTOR_BATCH = Range(1, 1, 2)


@dataclass(frozen=True)
class ExportedGraph:
    """One file of a new bundle: its spec, its bytes and its relative error against torch (`check.TOLERANCES`).

    error is None for int8, whose ranges fit real samples only: parity judges it.
    """

    name: GraphName
    precision: str
    spec: GraphSpec
    size: int
    error: float | None


def export_bundle(
    checkpoint: str | Path,
    out: str | Path,
    precisions: Sequence[str] = ("fp32", "fp16"),
    backbone: Backbone | None = None,
    force: bool = False,
    on_graph: Callable[[str, int], None] = lambda graph, total: None,
    *,
    max_regions: int | None = None,
    max_words: int | None = None,
) -> tuple[Manifest, list[ExportedGraph]]:
    """Write a bundle beside OUT and move it into place; the same checkpoint gives the same bytes.

    Args:
        checkpoint: a directory as `chan train` or `chan import` writes it.
        out: the bundle's directory, to be made.
        precisions: some of `CONVERT`.
        backbone: pictures to regions; None for a bundle that starts from region features.
        force: replace a bundle at OUT, with all that was calibrated and built in it.
        on_graph: called before each graph is made, with its name and precision and the number of graphs.
        max_regions: the largest number of regions of an image that the graphs take (R). Engines are built for it, so
            that a larger number costs a GPU memory. None for 100, or the regions of a backbone that returns more.
        max_words: the largest number of words of a caption, the marks of start and end included (W), as for regions;
            None for 128, or the positions of a BERT that has fewer.

    Raises:
        InputError: a precision is unknown, OUT is taken (by anything but a bundle: also with `force`), or a number of
            regions is below 1, or one of words below 3 or beyond the positions of BERT.
        CheckpointError: the checkpoint cannot be read, or its tokenizer is that of another model.
        BundleError: the checkpoint has no tokenizer, the backbone's regions do not fit the model, or a graph fails a
            check of `check.check_graph`.
    """
    check_choices("precision", precisions, CONVERT)
    wanted = list(dict.fromkeys(precisions))
    out = Path(out)
    check_place(out, force)
    loaded = load_checkpoint(checkpoint)
    if not loaded.tokenizer_files:
        raise BundleError(
            f"{checkpoint} has no tokenizer: a bundle could not read captions; save the checkpoint with one"
        )
    open_tokenizer(loaded, checkpoint)  # a bundle with the words of another model would score nonsense
    config = loaded.model.config
    graphs = build_graphs(loaded.model)
    own_regions = 1
    if backbone is not None:
        graphs = {"backbone": backbone_graph(backbone, config.region_dim), **graphs}
        own_regions = graphs["backbone"].graph.output[0].type.tensor_type.shape.dim[1].dim_value
    ranges = _ranges(config, max_regions, max_words, own_regions)
    with atomic_folder(out) as fresh:
        exported: list[ExportedGraph] = []
        for name, model in graphs.items():
            cases = make_cases(name, loaded.model, backbone)
            for precision in wanted:
                on_graph(f"{name} {precision}", len(graphs) * len(wanted))
                try:
                    converted = CONVERT[precision](model)
                except InputError as reason:
                    if name != "backbone" or precision == "fp32" or "fp32" not in wanted:
                        raise
                    _log.warning("the backbone stays at fp32: %s", reason)
                else:
                    exported.append(_export(converted, fresh, name, precision, ranges, cases))
        manifest = Manifest(
            model=config.to_dict(),
            alignment=config.alignment,
            graphs={name: {item.precision: item.spec for item in exported if item.name == name} for name in graphs},
            tokenizer=_write_tokenizer(loaded, fresh),
            preprocess=None if backbone is None else backbone.preprocess,
            backbone=None if backbone is None else backbone.name,
            tools={name: version(name) for name in ("chan-rt", "onnx", "torch")},
        )
        write_manifest(fresh, manifest)
    return manifest, exported


def _export(
    model: onnx.ModelProto,
    bundle: Path,
    name: GraphName,
    precision: str,
    ranges: Mapping[str, Range],
    cases: Sequence[Case],
) -> ExportedGraph:
    """Write a graph into a bundle and check it."""
    file = f"graphs/{precision}/{name}.onnx"
    write_graph(bundle / file, model)
    error = check_graph(bundle / file, precision, cases)
    return ExportedGraph(name, precision, describe(model, bundle, file, ranges), (bundle / file).stat().st_size, error)


def describe(model: onnx.ModelProto, bundle: Path, file: str, ranges: Mapping[str, Range]) -> GraphSpec:
    """The manifest's record of a graph written to BUNDLE/FILE."""
    inputs = tuple(map(_tensor_spec, model.graph.input))
    if model.graph.name == "backbone":
        boxed = any(item.name == "boxes" for item in model.graph.output)
        ranges = {**ranges, "B": DETECTOR_BATCH if boxed else BACKBONE_BATCH}
    return GraphSpec(
        file=file,
        sha256=sha256_file(bundle / file),
        opset=next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx")),
        inputs=inputs,
        outputs=tuple(map(_tensor_spec, model.graph.output)),
        ranges={axis: ranges[axis] for tensor in inputs for axis in tensor.shape if isinstance(axis, str)},
    )


def write_graph(path: Path, model: onnx.ModelProto) -> None:
    """Write an ONNX file, the same bytes for the same model; BundleError where it is too large for one file."""
    if model.ByteSize() > PROTOBUF_LIMIT:
        raise BundleError(f"{path.stem} has {model.ByteSize()} bytes, an ONNX file at most {PROTOBUF_LIMIT}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _write_tokenizer(checkpoint: Checkpoint, bundle: Path) -> TokenizerSpec:
    files = {}
    (bundle / "tokenizer").mkdir()
    for name, content in sorted(checkpoint.tokenizer_files.items()):
        (bundle / "tokenizer" / name).write_bytes(content)
        files[f"tokenizer/{name}"] = sha256_file(bundle / "tokenizer" / name)
    return TokenizerSpec(checkpoint.tokenizer_kind, files)


def _tensor_spec(info: onnx.ValueInfoProto) -> TensorSpec:
    kind = info.type.tensor_type
    shape = tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim)
    return TensorSpec(info.name, helper.tensor_dtype_to_np_dtype(kind.elem_type).name, shape)


def _ranges(config: ModelConfig, max_regions: int | None, max_words: int | None, own_regions: int) -> dict[str, Range]:
    """`RANGES` with the largest numbers of regions and words that were requested.

    Where there are more regions than 100, blocks of the alignment have so many images less.
    """
    usual = RANGES["R"].max
    max_regions = max(usual, own_regions) if max_regions is None else max_regions
    positions = None if config.bert is None else config.bert.positions
    if max_words is None:
        max_words = RANGES["W"].max if positions is None else min(RANGES["W"].max, positions)
    if not 1 <= max_regions <= MOST:
        raise InputError(f"max_regions must be positive and at most {MOST}, got {max_regions}")
    if not 3 <= max_words <= MOST:
        raise InputError(
            f"max_words must be at least 3, a word with the marks of start and end, and at most {MOST}, got {max_words}"
        )
    if positions is not None and max_words > positions:
        raise InputError(f"max_words must be at most the {positions} positions of this model's BERT, got {max_words}")
    if max_regions < own_regions:
        raise InputError(f"max_regions must be at least the {own_regions} regions of the backbone, got {max_regions}")
    images = max(1, RANGES["I"].max * usual // max(usual, max_regions))
    return {
        **RANGES,
        "R": _up_to(RANGES["R"], max_regions),
        "W": _up_to(RANGES["W"], max_words),
        "I": _up_to(RANGES["I"], images),
    }


def _up_to(sizes: Range, largest: int) -> Range:
    return Range(min(sizes.min, largest), min(sizes.opt, largest), largest)
