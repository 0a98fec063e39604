"""What a bundle promises: the tensors of each graph, and the manifest that binds files to hashes.

Symbols used in shapes: B batch, R regions, F region features, W words, D embedding, I images, C captions.
Everything here is plain data; reading and writing it needs only the standard library.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from .checks import check_choice
from .errors import BundleError, InputError, reason_of
from .files import recover, write_file
from .manifest_rules import check_manifest, model_size
from .onnx_file import refuse_external_data
from .strict_json import decode, parse_json, read_json, show, show_key

SCHEMA = 1
MANIFEST = "manifest.json"

Coding = Literal["VHA", "THA", "VSA"]
Pooling = Literal["Max", "Mean", "Sum", "LSE", "Softmax"]
GraphName = Literal["backbone", "region_encoder", "text_encoder", "hard_alignment", "alignment_map"]
Precision = Literal["fp32", "fp16", "int8", "int8_x86"]

GRAPHS: tuple[GraphName, ...] = get_args(GraphName)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
# TensorRT runs what is not int8 in half; onnxruntime on the CPU has no half kernels worth having.
FINER: Mapping[str, tuple[Precision, ...]] = {"int8": ("fp16", "fp32"), "int8_x86": ("fp32",)}


@dataclass(frozen=True)
class AlignmentConfig:
    """How region-word similarities become a score (CHAN, CVPR 2023, section 3).

    Attributes:
        coding: VHA lets each word choose its best region (the paper's), THA each region its best word;
            VSA attends softly.
        pooling: how the coding's valid entries become one number.
        attention_temperature: VSA's softmax temperature (`alpha` in published checkpoints).
        pooling_temperature: temperature of LSE and Softmax pooling (`belta` in published checkpoints).
    """

    coding: Coding = "VHA"
    pooling: Pooling = "LSE"
    attention_temperature: float = 0.1
    pooling_temperature: float = 0.1

    def __post_init__(self) -> None:
        check_choice("coding", self.coding, get_args(Coding))
        check_choice("pooling", self.pooling, get_args(Pooling))
        for name in ("attention_temperature", "pooling_temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be positive and finite, got {getattr(self, name)}")

    @classmethod
    def maxsim(cls) -> AlignmentConfig:
        """MaxSim, the score of ColBERT and ColPali: each word's largest inner product, summed (VHA with Sum)."""
        return cls("VHA", "Sum")


@dataclass(frozen=True)
class Range:
    """The sizes one symbolic dimension may take: smallest, the one to tune for, largest."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise BundleError(f"a range must satisfy 1 <= min <= opt <= max, got {self.min}, {self.opt}, {self.max}")


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype name and shape of one graph input or output; a symbolic dimension is a string."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX file of a bundle.

    Attributes:
        file: path relative to the bundle.
        sha256: of that file's bytes.
        opset: of the default ONNX domain.
        inputs, outputs: in graph order.
        ranges: for each symbol that occurs in `inputs`, the sizes it may take.
    """

    file: str
    sha256: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: Mapping[str, Range]


@dataclass(frozen=True)
class TokenizerSpec:
    """The tokenizer's kind (`scan`: word vocabulary, `bert`: wordpiece) and its files with their sha256."""

    kind: Literal["scan", "bert"]
    files: Mapping[str, str]


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes `pixels`: resized to size x size RGB, scaled to [0, 1], then (x - mean) / std.

    grid: the backbone's regions are a grid x grid raster of the picture, row by row; None where the backbone returns a
        box for each region.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    grid: int | None


@dataclass(frozen=True)
class Manifest:
    """All a runtime must know of a bundle.

    Attributes:
        model: the reference's configuration, as a record (the runtime reads only `embed_dim` and `region_dim`).
        alignment: how similarities become scores.
        graphs: by graph name and precision.
        tokenizer: kind and files.
        preprocess: of the backbone; None where the bundle starts from region features.
        backbone: the backbone's name, such as `timm:resnet50`; None where there is no backbone, or a bundle is older
            than this field and its backbone is efficientnet-lite0.
        calibration: sha256 of the calibration ranges by file; empty where none.
        tools: versions of what wrote the bundle.
        parity: verdicts by "backend/precision": {"passed": bool, "report_sha256": str, ...}. The hash is the `sha256`
            of the report (chan parity --output-json); in older bundles that of its file.
    """

    model: Mapping[str, Any]
    alignment: AlignmentConfig
    graphs: Mapping[str, Mapping[str, GraphSpec]]
    tokenizer: TokenizerSpec
    preprocess: Preprocess | None = None
    calibration: Mapping[str, str] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    parity: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    backbone: str | None = None

    @property
    def embed_dim(self) -> int:
        """D, the width of region and word embeddings."""
        return model_size(self.model, "embed_dim")

    @property
    def region_dim(self) -> int:
        """F, the width of region features."""
        return model_size(self.model, "region_dim")

    @property
    def max_regions(self) -> int | None:
        """R, the largest number of regions of an image; None where the region encoder takes any number."""
        found = [spec.ranges["R"].max for spec in self.graphs.get("region_encoder", {}).values() if "R" in spec.ranges]
        return found[0] if found else None

    @property
    def max_words(self) -> int:
        """W, the largest number of words of a caption, its marks of start and end included; BundleError without it."""
        found = [spec.ranges["W"].max for spec in self.graphs.get("text_encoder", {}).values() if "W" in spec.ranges]
        if not found:
            raise BundleError("this bundle has no graph 'text_encoder' that takes captions of W words")
        return found[0]

    def graph(self, name: str, precision: str) -> GraphSpec:
        """The spec of one graph at one precision; BundleError names what the bundle holds instead."""
        by_precision = self.graphs.get(name)
        if by_precision is None:
            raise BundleError(f"this bundle has no graph {name!r}; it has {', '.join(self.graphs)}")
        if precision not in by_precision:
            hint = f"; chan export --precision {precision} makes it" if precision in PRECISIONS else ""
            held = ", ".join(by_precision)
            raise BundleError(f"{name} is not in this bundle at precision {precision!r}; it has {held}{hint}")
        return by_precision[precision]

    def resolve(self, name: str, precision: str) -> str:
        """What a graph runs at when `precision` is asked for: that, or the next finer where it has no such form.

        Only int8 falls back, and every precision of the backbone: a graph of which nothing was quantized has no int8
        file, nor has a backbone at the int8 of TensorRT, or without pictures to calibrate it on. BundleError where the
        bundle has no graph at `precision` at all.
        """
        by_precision = self.graphs.get(name, {})
        falls_back = precision in ("int8", "int8_x86") or name == "backbone"
        if precision not in by_precision and falls_back and any(precision in item for item in self.graphs.values()):
            for finer in FINER.get(precision, ("fp32",)):
                if finer in by_precision:
                    return finer
        self.graph(name, precision)
        return precision

    def check_precisions(self, precisions: Iterable[str]) -> None:
        """BundleError unless every graph runs at each of these precisions, as `resolve` says."""
        for precision in precisions:
            for name in self.graphs:
                self.resolve(name, precision)

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, two-space indent, final newline."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read `to_json`'s text; BundleError names what does not fit."""
        try:
            return cls._from_parsed(parse_json(text))
        except InputError as error:
            raise BundleError(f"the manifest cannot be understood: {error}") from error

    @classmethod
    def load(cls, bundle: str | Path) -> Manifest:
        """Read BUNDLE/manifest.json; BundleError names it where there is none or it does not fit."""
        path = Path(bundle) / MANIFEST
        try:
            recover(path.parent)
            return cls._from_parsed(read_json(path))
        except OSError as error:
            why = f"it has no {MANIFEST}" if isinstance(error, FileNotFoundError) else reason_of(error)
            hint = "make one with: chan export CHECKPOINT -o BUNDLE"
            raise BundleError(f"{bundle} is not a bundle: {why}; {hint}") from error
        except InputError as error:
            raise BundleError(f"{path}: the manifest cannot be understood: {error}") from error
        except BundleError as error:
            raise BundleError(f"{path}: {error}") from error

    @classmethod
    def _from_parsed(cls, raw: object) -> Manifest:
        fields = dict(decode(dict[str, Any], raw, "manifest"))
        schema = fields.pop("schema", None)
        if schema is None:
            raise InputError("manifest must have the fields schema")
        if type(schema) is not int or schema != SCHEMA:
            raise BundleError(f"the bundle's schema is {show(schema)}, this version reads {SCHEMA}: export it again")
        manifest = decode(cls, fields, "manifest")
        check_manifest(manifest)
        return manifest


def write_manifest(bundle: str | Path, manifest: Manifest) -> None:
    """Put a manifest into a bundle; a reader sees the old one or the new one, never a part."""
    write_file(Path(bundle) / MANIFEST, manifest.to_json())


def sha256_file(path: str | Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def has_keys(file: Path, *keys: str) -> bool:
    """Whether a file holds a JSON object with these keys: enough to tell a folder of ours, of whatever schema."""
    try:
        raw = read_json(file)
    except (OSError, InputError):
        return False
    return isinstance(raw, dict) and set(keys) <= raw.keys()


def verified(bundle: str | Path, file: str, sha256: str) -> Path:
    """BUNDLE/FILE once its bytes are known to be those of the manifest; of an ONNX file, all its weights lie in it.

    Raises:
        BundleError: the file is missing, outside the bundle, unreadable, altered, or an ONNX file with external data.
    """
    root = Path(bundle).resolve()
    try:
        path = (root / file).resolve()
        if root not in path.parents:
            raise BundleError(f"{show_key(file)} points outside the bundle {bundle}")
        if not path.is_file():
            raise BundleError(f"{path} is missing: the bundle is incomplete, export it again")
        found = sha256_file(path)
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a NUL in it, a circle of links
        raise BundleError(f"{show_key(file)} of the bundle {bundle} cannot be read: {error}") from error
    if found != sha256:
        raise BundleError(f"{path} was altered: its sha256 must be {sha256}, got {found}. Copy or export it again")
    if path.suffix == ".onnx":
        refuse_external_data(path)
    return path
