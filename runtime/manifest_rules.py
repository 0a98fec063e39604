"""What the types of a manifest leave open: names, files inside the bundle, and sizes that memory can hold."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .strict_json import show, show_key

if TYPE_CHECKING:
    from .contract import GraphSpec, Manifest, Preprocess

# What a manifest may ask for: larger than any model or gallery in one call, smaller than what would exhaust memory.
MAX_SIZE = 2**24
MAX_ELEMENTS = 2**28  # of one input at its smallest sizes
MAX_PICTURE = 4096
DTYPES = ("float32", "float16", "int8", "uint8", "int32", "int64", "bool")
_NAME = re.compile(r"[A-Za-z_][\w.-]{0,99}", re.ASCII)


def check_manifest(manifest: Manifest) -> None:
    """Check what the types of a manifest leave open.

    Raises:
        InputError: names the field, the rule and the value.
    """
    for name in ("embed_dim", "region_dim"):
        if name in manifest.model:
            model_size(manifest.model, name)
    bert = manifest.model.get("bert")
    if not (bert is None or isinstance(bert, dict)):
        raise InputError(f"manifest.model.bert must be an object, got {show(bert)}")
    for sizes in (manifest.model, bert or {}):
        if sizes.get("vocab_size") is not None:
            model_size(sizes, "vocab_size", least=0)
    for file in (*manifest.tokenizer.files, *manifest.calibration):
        _check_file(file, "")
    for graph, by_precision in manifest.graphs.items():
        for precision, spec in by_precision.items():
            for name in (graph, precision):
                if not _NAME.fullmatch(name):
                    raise InputError(f"manifest.graphs must have plain names, got {show(name)}")
            _check_graph(f"manifest.graphs.{graph}.{precision}", spec)
    if manifest.preprocess is not None:
        check_preprocess(manifest.preprocess)


def model_size(model: Mapping[str, Any], name: str, least: int = 1) -> int:
    """A size that the model's record names; InputError unless it is an integer up to MAX_SIZE."""
    value = model.get(name)
    if type(value) is not int or not least <= value <= MAX_SIZE:
        raise InputError(f"manifest.model.{name} must be an integer from {least} to {MAX_SIZE:,}, got {show(value)}")
    return value


def _check_graph(where: str, spec: GraphSpec) -> None:
    _check_file(spec.file, ".onnx")
    if not 1 <= spec.opset <= 1000:
        raise InputError(f"{where}.opset must lie in 1 to 1000, got {spec.opset}")
    for symbol, range_ in spec.ranges.items():
        if range_.max > MAX_SIZE:
            raise InputError(f"{where}.ranges.{show_key(symbol)} must be at most {MAX_SIZE:,}, got {range_.max}")
    for tensor in (*spec.inputs, *spec.outputs):
        if not _NAME.fullmatch(tensor.name) or tensor.dtype not in DTYPES or len(tensor.shape) > 8:
            raise InputError(
                f"{where}: a tensor must have a plain name, a dtype of {', '.join(DTYPES)} and at most 8 axes, got "
                f"{show(tensor.name)}, {show(tensor.dtype)}, {len(tensor.shape)}"
            )
        for axis in tensor.shape:
            if not (_NAME.fullmatch(axis) if isinstance(axis, str) else 1 <= axis <= MAX_SIZE):
                raise InputError(
                    f"{where}: {tensor.name} must have symbols or sizes up to {MAX_SIZE:,}, got {show(axis)}"
                )
    for tensor in spec.inputs:
        if missing := [axis for axis in tensor.shape if isinstance(axis, str) and axis not in spec.ranges]:
            raise InputError(f"{where}.ranges must have {missing[0]}, an axis of {tensor.name}")
        least = math.prod(spec.ranges[axis].min if isinstance(axis, str) else axis for axis in tensor.shape)
        if least > MAX_ELEMENTS:
            raise InputError(
                f"{where}: {tensor.name} must have at most {MAX_ELEMENTS:,} numbers, its least is {least:,}"
            )


def check_preprocess(preprocess: Preprocess, where: str = "manifest.preprocess") -> None:
    """InputError unless a picture of that size and normalization can be made."""
    grid = 1 if preprocess.grid is None else preprocess.grid
    if not 1 <= grid <= preprocess.size <= MAX_PICTURE:
        rule = f"1 <= grid <= size <= {MAX_PICTURE}"
        raise InputError(f"{where} must satisfy {rule}, got {grid} and {preprocess.size}")
    if not all(0 < std < math.inf for std in preprocess.std):
        raise InputError(f"{where}.std must be positive, got {preprocess.std}")


def _check_file(file: str, suffix: str) -> None:
    """A file's name in a manifest: relative, with plain separators, without a way up."""
    parts = file.split("/")
    if len(file) > 1000 or not file.isprintable() or "\\" in file or not {"", ".", ".."}.isdisjoint(parts):
        raise InputError(f"a file of the manifest must be a plain path inside the bundle, got {show(file)}")
    if not file.endswith(suffix):
        raise InputError(f"a graph's file must end in {suffix}, got {show(file)}")
