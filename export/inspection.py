"""What is inside a checkpoint, a bundle, an engine or an ONNX file, as plain data for `chan inspect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from ..runtime.backends.engine_staleness import capability_here, why_unusable_here
from ..runtime.backends.sidecar import Engine, EngineRecord, read_sidecars
from ..runtime.contract import MANIFEST, Manifest, TensorSpec, has_keys, verified
from ..runtime.errors import BundleError, CheckpointError, EngineError, InputError, reason_of

SIDECAR = ".json"
_IMPORTED = ("file", "epoch", "best_rsum")  # of what `chan import` records


def inspect_path(path: Path) -> dict[str, Any]:
    """Describe what is at `path`; `kind` is checkpoint, bundle, engine or onnx.

    Raises:
        InputError: neither a checkpoint, nor a bundle, nor an engine with its sidecar, nor an ONNX file.
        CheckpointError, BundleError, EngineError: one that cannot be understood.
    """
    if path.is_dir() and (path / MANIFEST).exists():
        return inspect_bundle(path)
    if has_keys(path / "config.json", "schema", "model") or (path / "best" / "config.json").is_file():
        return inspect_checkpoint(path)
    if path.suffix == ".engine" and path.is_file():
        return inspect_engine(path)
    if path.suffix == ".onnx" and path.is_file():
        return inspect_onnx(path)
    raise InputError(f"path must be a checkpoint's or bundle's folder, an .engine or an .onnx file, got {path}")


def inspect_checkpoint(path: Path) -> dict[str, Any]:
    """Sizes and choices of the model, and where it comes from: an import, or a training run with its options."""
    from ..chan_ref import checkpoint  # loads torch

    loaded = checkpoint.load(path)
    model = loaded.model.config.to_dict()
    record = loaded.record
    try:
        imported = None if "imported" not in record else {key: record["imported"][key] for key in _IMPORTED}
        training = None if "training" not in record else _training(record["training"])
    except (KeyError, TypeError, StopIteration) as error:
        raise CheckpointError(f"{path}: the record of its making cannot be understood: {reason_of(error)}") from error
    return {
        "kind": "checkpoint",
        "model": {key: value for key, value in model.items() if key != "alignment"},
        "alignment": model["alignment"],
        "tokenizer": loaded.tokenizer_kind,
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "imported": imported,
        "training": training,
    }


def _training(record: Mapping[str, Any]) -> dict[str, Any]:
    """The epoch of a run that a checkpoint is of, its rsum on the validation images, and the run's options."""
    epoch = record["epoch"]
    rsum = next(log["rsum"] for log in record["log"] if log["epoch"] == epoch)
    return {"epoch": epoch, "rsum": rsum, "options": dict(record["options"])}


def inspect_bundle(bundle: Path) -> dict[str, Any]:
    """Graphs, their files and ranges, and every engine with whether it may be used here.

    `problem` says why the file of a graph cannot be used, and `problems` the same of the tokenizer's and calibration's.
    """
    manifest = Manifest.load(bundle)
    graphs = []
    for name, by_precision in manifest.graphs.items():
        for precision, spec in by_precision.items():
            problem = _problem(bundle, spec.file, spec.sha256)
            graphs.append(
                {
                    "graph": name,
                    "precision": precision,
                    "file": spec.file,
                    "bytes": _size(bundle / spec.file),
                    "sound": problem is None,
                    "problem": problem,
                    "opset": spec.opset,
                    "inputs": [asdict(tensor) for tensor in spec.inputs],
                    "outputs": [asdict(tensor) for tensor in spec.outputs],
                    "ranges": {symbol: asdict(limits) for symbol, limits in spec.ranges.items()},
                }
            )
    others = {**manifest.tokenizer.files, **manifest.calibration}
    problems = (_problem(bundle, file, sha256) for file, sha256 in others.items())
    engines: list[dict[str, Any]] = []
    sidecars = read_sidecars(bundle)
    capability = capability_here()
    for engine in sidecars.engines:
        record = engine.record
        spec_here = manifest.graphs.get(record.graph, {}).get(record.precision)
        known = spec_here.sha256 if spec_here is not None else "no such graph any more"
        problem = why_unusable_here(engine, known, capability)
        engines.append({"file": engine.path.name, "problem": problem, **_engine_summary(asdict(record))})
    return {
        "kind": "bundle",
        "model": dict(manifest.model),
        "alignment": asdict(manifest.alignment),
        "tokenizer": manifest.tokenizer.kind,
        "tools": dict(manifest.tools),
        "parity": dict(manifest.parity),
        "graphs": graphs,
        "problems": [problem for problem in problems if problem is not None],
        "engines": engines,
        "broken": [str(error) for error in sidecars.unreadable],
    }


def _problem(bundle: Path, file: str, sha256: str) -> str | None:
    """Why a file of the bundle would be refused; None where it is sound."""
    try:
        verified(bundle, file, sha256)
    except BundleError as error:
        return str(error)
    return None


def _size(file: Path) -> int | None:
    """The bytes of a file; None where there is none that can be read."""
    try:
        return file.stat().st_size if file.is_file() else None
    except (OSError, ValueError):  # a name too long, a NUL in it
        return None


def inspect_engine(path: Path) -> dict[str, Any]:
    """Everything in the engine's sidecar, and whether the engine may be used here."""
    sidecar = path.with_suffix(SIDECAR)
    if not sidecar.exists():
        raise EngineError(f"{path} has no sidecar {sidecar.name}: it was not built by chan build, or never finished")
    record = EngineRecord.from_file(sidecar)
    problem = why_unusable_here(Engine(path, record), None, capability_here())
    kinds = Counter((layer["type"], layer["precision"]) for layer in record.layers["each"])
    by_type = [
        {"type": kind, "precision": precision, "count": count} for (kind, precision), count in kinds.most_common()
    ]
    return {"kind": "engine", "problem": problem, "layers_by_type": by_type, **asdict(record)}


def inspect_onnx(path: Path) -> dict[str, Any]:
    """Inputs, outputs, nodes by type, and how many of the weights' bytes and of the nodes are of each precision."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
        if not model.HasField("graph"):  # also of an empty file
            raise ValueError("it holds no graph")
        model = onnx.shape_inference.infer_shapes(model)
    except (DecodeError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise BundleError(f"{path} is not a readable ONNX file: {error}") from error
    graph = model.graph
    name_of = {value: key.lower() for key, value in onnx.TensorProto.DataType.items()}
    weights: Counter[str] = Counter()
    for tensor in graph.initializer:
        weights[name_of[tensor.data_type]] += _bytes(onnx, tensor)
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    nodes: Counter[tuple[str, str]] = Counter()
    for node in graph.node:
        nodes[node.op_type, _precision(name_of.get(types.get(name, 0), "undefined") for name in node.input)] += 1
    by_precision: Counter[str] = Counter()
    for (_, precision), count in nodes.items():
        by_precision[precision] += count
    return {
        "kind": "onnx",
        "bytes": path.stat().st_size,
        "ir_version": model.ir_version,
        "opsets": {opset.domain or "ai.onnx": opset.version for opset in model.opset_import},
        "inputs": [asdict(_spec(value, name_of)) for value in graph.input],
        "outputs": [asdict(_spec(value, name_of)) for value in graph.output],
        "weight_bytes": dict(weights),
        "nodes_by_precision": dict(by_precision),
        "nodes_by_type": [
            {"type": kind, "precision": precision, "count": count} for (kind, precision), count in nodes.most_common()
        ],
    }


def _engine_summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without its list of layers."""
    layers = {key: value for key, value in record["layers"].items() if key != "each"}
    return {**record, "layers": layers}


def _spec(value: Any, name_of: Mapping[int, str]) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
    return TensorSpec(value.name, name_of[tensor.elem_type], shape)


def _precision(inputs: Iterable[str]) -> str:
    """What a node computes in: the narrowest floating or 8-bit type it reads."""
    found = set(inputs)
    return next((name for name in ("int8", "uint8", "float16", "bfloat16", "float") if name in found), "other")


def _bytes(onnx: Any, tensor: Any) -> int:
    if tensor.raw_data:
        return len(tensor.raw_data)
    return int(prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
