"""Whether Triton can serve a model repository, as far as that shows without Triton.

Each config.pbtxt is parsed by the protocol buffers of `tritonclient`, which know every field that Triton does, and is
held against the files beside it: an ONNX graph's tensors, the sizes they may take, the requests that warm it up, and of
`chan_search` the bundle and the gallery.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.contract import Manifest, TensorSpec, sha256_file, verified
from ...runtime.errors import ChanError, InputError, reason_of
from ...runtime.extras import needs
from ...runtime.files import recover
from ...runtime.gallery import Gallery, fingerprint
from .configs import DATA_TYPES, LIMITS, MODEL_FILES, RANGES, SEARCH, SEARCH_INPUTS, SEARCH_OUTPUTS, SHA256
from .onnx_tensors import read_tensors
from .repository import CONFIG, MODEL_PY, is_repository

_SIZES = {kind: np.dtype(name).itemsize for name, kind in DATA_TYPES.items()}


@dataclass(frozen=True)
class ModelCheck:
    """What was found of one model.

    Attributes:
        name: of its folder.
        backend: that its configuration names.
        problems: what keeps Triton from serving it, or makes it serve something else; empty where all is well.
        unchecked: what could not be checked here.
    """

    name: str
    backend: str
    problems: tuple[str, ...]
    unchecked: tuple[str, ...] = ()


def check_repository(path: str | Path) -> list[ModelCheck]:
    """Check every model of a repository, in the order of their names.

    Raises:
        InputError: this is no repository that `chan triton` made.
        MissingExtra: tritonclient is not installed.
    """
    path = Path(path)
    with needs("tritonclient", "checking a model repository"):
        import tritonclient.grpc.model_config_pb2  # noqa: F401 - before anything is read
    recover(path)
    if not is_repository(path):
        raise InputError(f"{path} is not a repository of chan triton: make one with: chan triton BUNDLE -o REPOSITORY")
    return [_check_model(folder) for folder in sorted(path.iterdir()) if folder.is_dir()]


def _check_model(folder: Path) -> ModelCheck:
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
        config = text_format.Parse(text, ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        return ModelCheck(folder.name, "unknown", (f"{CONFIG} cannot be read: {reason_of(error)}",))
    unchecked: list[str] = []
    problems = [*_problems(folder, config), *_batching(config)]
    if config.backend == "onnxruntime" and not problems:
        problems += _onnx(folder, config)
    if config.backend == "tensorrt":
        unchecked.append("whether the server's GPU and its version of TensorRT take the engine")
    if config.name == SEARCH and not problems:
        problems += _search(folder, config, unchecked)
    return ModelCheck(folder.name, config.backend, tuple(problems), tuple(unchecked))


def _problems(folder: Path, config: Any) -> Iterator[str]:
    """What is wrong with a model's name, its versions and their files."""
    if config.name != folder.name:
        yield f"name must be that of its folder, {folder.name!r}, got {config.name!r}"
    if config.backend not in MODEL_FILES:
        yield f"backend must be one of {', '.join(MODEL_FILES)}, got {config.backend!r}"
        return
    versions = _versions(folder)
    if not versions:
        yield "there is no version: a folder with a number for its name"
    for version in versions:
        file = version / MODEL_FILES[config.backend]
        if not file.is_file():
            yield f"version {version.name} has no {file.name}"
        elif (wanted := _parameter(config, SHA256)) is not None and (found := sha256_file(file)) != wanted:
            yield f"{version.name}/{file.name} was altered: its sha256 must be {wanted}, got {found}"


def _batching(config: Any) -> Iterator[str]:
    """What is wrong with how a model's requests are put together, and with its instances."""
    if config.max_batch_size < 0:
        yield f"max_batch_size must not be negative, got {config.max_batch_size}"
    if config.HasField("dynamic_batching") and config.max_batch_size < 1:
        yield f"dynamic_batching needs a max_batch_size above 0, got {config.max_batch_size}"
    for size in config.dynamic_batching.preferred_batch_size:
        if not 1 <= size <= config.max_batch_size:
            yield f"preferred_batch_size must be between 1 and max_batch_size {config.max_batch_size}, got {size}"
    for group in config.instance_group:
        if group.count < 0:
            yield f"count of an instance_group must not be negative, got {group.count}"


def _onnx(folder: Path, config: Any) -> Iterator[str]:
    """Where the configuration of an ONNX graph and the graph disagree."""
    try:
        ranges = _ranges(config)
    except InputError as error:
        yield str(error)
        return
    batched = config.max_batch_size > 0
    for version in _versions(folder):
        try:
            inputs, outputs = read_tensors(version / MODEL_FILES[config.backend])
        except InputError as error:
            yield str(error)
            continue
        yield from _tensors("input", config.input, inputs, batched)
        yield from _tensors("output", config.output, outputs, batched)
        symbols = {axis for tensor in inputs for axis in tensor.shape if isinstance(axis, str)}
        if symbols != ranges.keys():
            wanted = ", ".join(sorted(symbols))
            yield f"{RANGES} must have the graph's {wanted}, got {', '.join(sorted(ranges)) or 'none'}"
            continue
        head = inputs[0].shape[0]
        if batched and isinstance(head, str) and config.max_batch_size > ranges[head][2]:
            largest = ranges[head][2]
            yield f"max_batch_size must be at most {largest}, the largest {head}, got {config.max_batch_size}"
        yield from _warmup(folder, config, inputs, ranges)


def _tensors(side: str, given: Iterable[Any], graph: Sequence[TensorSpec], batched: bool) -> Iterator[str]:
    by_name = {tensor.name: tensor for tensor in given}
    names = {tensor.name for tensor in graph}
    if by_name.keys() != names:
        yield f"{side} must name the graph's {', '.join(sorted(names))}, got {', '.join(sorted(by_name)) or 'none'}"
        return
    for tensor in graph:
        found = by_name[tensor.name]
        data_type = _enum(found, "data_type")
        if data_type != DATA_TYPES[tensor.dtype]:
            yield f"{side} {tensor.name}: data_type must be {DATA_TYPES[tensor.dtype]}, got {data_type}"
        wanted = [axis if isinstance(axis, int) else -1 for axis in (tensor.shape[1:] if batched else tensor.shape)]
        shape = list(found.reshape.shape if found.HasField("reshape") else found.dims)
        if shape != wanted:
            yield f"{side} {tensor.name}: its shape must be {wanted}, got {shape}"
        elif found.HasField("reshape") and prod(found.dims) != prod(wanted):
            yield f"{side} {tensor.name}: dims must have as many numbers as reshape, got {list(found.dims)}"


def _warmup(
    folder: Path, config: Any, inputs: Sequence[TensorSpec], ranges: Mapping[str, tuple[int, int, int]]
) -> Iterator[str]:
    """What is wrong with the requests that warm a model up."""
    batched = config.max_batch_size > 0
    for sample in config.model_warmup:
        where = f"model_warmup {sample.name}"
        if batched and not 1 <= sample.batch_size <= config.max_batch_size:
            most = config.max_batch_size
            yield f"{where}: batch_size must be between 1 and max_batch_size {most}, got {sample.batch_size}"
        if sample.inputs.keys() != {tensor.name for tensor in inputs}:
            yield f"{where}: inputs must be {', '.join(tensor.name for tensor in inputs)}"
            continue
        sizes: dict[str, int] = {}
        for tensor in inputs:
            given = sample.inputs[tensor.name]
            axes = tensor.shape[1:] if batched else tensor.shape
            data_type = _enum(given, "data_type")
            if data_type != DATA_TYPES[tensor.dtype]:
                yield f"{where}: data_type of {tensor.name} must be {DATA_TYPES[tensor.dtype]}, got {data_type}"
                continue
            if len(given.dims) != max(1, len(axes)):
                yield f"{where}: {tensor.name} must have {max(1, len(axes))} axes, got {list(given.dims)}"
                continue
            for axis, size in zip(axes, given.dims, strict=False):
                low, high = (ranges[axis][0], ranges[axis][2]) if isinstance(axis, str) else (axis, axis)
                if not low <= size <= high or (isinstance(axis, str) and sizes.setdefault(axis, size) != size):
                    yield f"{where}: {axis} of {tensor.name} must be between {low} and {high}, once, got {size}"
            yield from _warmup_file(folder, where, tensor.name, given)


def _warmup_file(folder: Path, where: str, name: str, given: Any) -> Iterator[str]:
    if given.WhichOneof("input_data_type") != "input_data_file":
        return
    file = folder / "warmup" / given.input_data_file
    wanted = prod(given.dims) * _SIZES[_enum(given, "data_type")]
    found = file.stat().st_size if file.is_file() else None
    if found != wanted:
        got = "no file" if found is None else f"{found} bytes"
        yield f"{where}: {name} needs warmup/{given.input_data_file} with {wanted} bytes, got {got}"


def _search(folder: Path, config: Any, unchecked: list[str]) -> Iterator[str]:
    """What is wrong with `chan_search`: its tensors, its code, its bundle and its gallery."""
    for side, given, wanted in (("input", config.input, SEARCH_INPUTS), ("output", config.output, SEARCH_OUTPUTS)):
        found = {(one.name, _enum(one, "data_type"), tuple(one.dims)) for one in given}
        for name, kind, dims in sorted(set(wanted) ^ found):
            kept = "is missing" if (name, kind, dims) in wanted else "is not what chan_search has"
            yield f"{side} {name}: {kind} {list(dims)} {kept}"
    for name in LIMITS:
        limit = _parameter(config, name) or ""
        if not re.fullmatch(r"[1-9]\d{0,17}", limit):
            yield f"{name} must be a whole number from 1 on, got {limit[:80]!r}"
    for version in _versions(folder):
        if (version / MODEL_FILES["python"]).read_bytes() != MODEL_PY.encode():
            yield f"{version.name}/{MODEL_FILES['python']} was altered: write the repository again"
        try:
            manifest = Manifest.load(version / "bundle")
            graphs = {spec.file: spec.sha256 for forms in manifest.graphs.values() for spec in forms.values()}
            for file, sha256 in {**graphs, **manifest.tokenizer.files}.items():
                verified(version / "bundle", file, sha256)
            model = fingerprint(manifest, _parameter(config, "chan_precision") or "fp32")
            place = _parameter(config, "gallery") or ""
            if "://" not in place and os.path.isdir(place):
                Gallery.open(place, model=model).close()
            else:
                unchecked.append(f"the gallery {place}, which is not on this machine")
        except ChanError as error:
            yield str(error)


def _ranges(config: Any) -> dict[str, tuple[int, int, int]]:
    text = _parameter(config, RANGES)
    try:
        return {str(name): (int(low), int(opt), int(high)) for name, (low, opt, high) in json.loads(text or "").items()}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{RANGES} must be an object of lists of three sizes, got {text and text[:200]!r}") from error


def _parameter(config: Any, name: str) -> str | None:
    return str(config.parameters[name].string_value) if name in config.parameters else None


def _enum(message: Any, name: str) -> str:
    field = message.DESCRIPTOR.fields_by_name[name]
    number = getattr(message, name)
    known = field.enum_type.values_by_number.get(number)  # a configuration may hold any number
    return str(number if known is None else known.name)


def _versions(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdecimal() and path.name != "0")
