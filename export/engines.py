"""Engines of a bundle's graphs: built through polygraphy, cached beside the manifest, checked for their precision.

BUNDLE/engines/ holds GRAPH.PRECISION.FLAVOR.KEY.engine for each engine, and its sidecar .json, which is written last.
The key is the sha256 over canonical JSON of the ONNX file's hash, profiles, builder options, flavor and full version,
GPU and operating system, so everything that changes an engine changes its name. A file lock keeps two builders of one
engine apart. The operating system releases it when its holder is killed, and the next builder removes what was left.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..runtime.backends.engine_staleness import why_unusable
from ..runtime.backends.probe import examine_backend
from ..runtime.backends.rtx_gpus import portable_gpus
from ..runtime.backends.sidecar import AMPERE_PLUS, ENGINES, Engine, EngineRecord, Profile, host_os, stem
from ..runtime.backends.table import FLAVORS, Flavor
from ..runtime.checks import check_choice
from ..runtime.contract import GraphSpec, Manifest, sha256_file, verified
from ..runtime.errors import EngineError, InputError
from ..runtime.files import naming, publish
from ..runtime.gpu import examine_gpu
from .engine_layers import WANTED, check_precision
from .engine_process import run_worker
from .profiles import choose_profiles, default_profiles, parse_profile

_log = logging.getLogger(__name__)
_TRT_TYPES = {"float32": "FLOAT", "float16": "HALF", "int32": "INT32", "int64": "INT64", "int8": "INT8", "bool": "BOOL"}


@dataclass(frozen=True)
class BuildOptions:
    """Builder options, TensorRT only; both cost some speed.

    Attributes:
        version_compatible: newer TensorRT versions may load the engine (it carries no host code).
        hardware_compatible: every GPU from Ampere on may run it, not only this one's architecture.
    """

    version_compatible: bool = False
    hardware_compatible: bool = False


@dataclass(frozen=True)
class BuiltEngine:
    """An engine ready for use.

    Attributes:
        path: the engine file.
        record: its sidecar.
        cached: whether it was there already.
        replaced: why the engine that was there was built again, None where there was none.
    """

    path: Path
    record: EngineRecord
    cached: bool
    replaced: str | None


@dataclass(frozen=True)
class Target:
    """What engines are built for: the flavor with its full version, the GPUs (as of `EngineRecord`), the system."""

    flavor: Flavor
    version: str
    gpus: tuple[str, ...]
    os: str


def find_target(flavor: str, options: BuildOptions = BuildOptions()) -> Target:
    """What this machine can build with a flavor; EngineError names what is missing and which flavor would work."""
    chosen = check_choice("backend", flavor, FLAVORS)
    rtx = flavor == "tensorrt_rtx"
    if rtx and options != BuildOptions():
        raise InputError(
            "tensorrt_rtx engines already run on every GPU that the library knows, and never under another version: "
            "version_compatible and hardware_compatible are options of tensorrt"
        )
    gpu = examine_gpu()
    report = examine_backend(flavor, gpu)
    if not report.builds or report.version is None:
        others = [name for name in FLAVORS if name != flavor and examine_backend(name, gpu).builds]
        instead = f"; --backend {others[0]} builds here" if others else ""
        raise EngineError(f"{flavor} cannot build here: {report.problem}; {report.remedy}{instead}")
    if rtx:
        gpus = portable_gpus(importlib.import_module(flavor))
    else:
        gpus = (AMPERE_PLUS,) if options.hardware_compatible else (gpu.gpus[0].architecture,)
    return Target(chosen, report.version, gpus, host_os())


def plan(
    bundle: str | Path, graphs: Sequence[str] = (), precisions: Sequence[str] = (), profiles: Sequence[str] = ()
) -> list[tuple[str, str, list[Profile]]]:
    """Which engines to build: graph, precision, profiles.

    Args:
        bundle: the bundle's folder.
        graphs, precisions: which ones; empty for all the bundle has that TensorRT can build (not int8_x86). A graph
            that has no int8 form is built at the precision a Matcher takes in its place.
        profiles: `SYMBOL=MIN:OPT:MAX,...` each; where one names only symbols of a graph, it replaces that graph's
            default profiles. Empty for the defaults.

    Raises:
        InputError: a profile that cannot be read, or that fits no graph chosen.
        BundleError: a graph or precision the bundle does not have.
    """
    manifest = Manifest.load(bundle)
    wanted = [parse_profile(text) for text in profiles]
    if "int8_x86" in precisions:
        raise InputError("precision int8_x86 is onnxruntime's own (uint8 activations); TensorRT takes int8")
    chosen, used = [], set()
    for graph in graphs or manifest.graphs:
        if graph not in manifest.graphs:
            manifest.graph(graph, "")  # the error lists the graphs there are
        own_precisions = [name for name in manifest.graphs[graph] if name in WANTED]
        for precision in dict.fromkeys(manifest.resolve(graph, name) for name in precisions or own_precisions):
            spec = manifest.graph(graph, precision)
            fitting = [index for index, ranges in enumerate(wanted) if set(ranges) <= set(spec.ranges)]
            used.update(fitting)
            own = choose_profiles(spec, [wanted[index] for index in fitting])
            chosen.append((graph, precision, own or default_profiles(spec)))
    for index, text in enumerate(profiles):
        if index not in used:
            raise InputError(f"profile {text!r} fits no graph chosen: one of its symbols is in none of them")
    return chosen


def build_engines(
    bundle: str | Path,
    backend: str = "tensorrt_rtx",
    graphs: Sequence[str] = (),
    precisions: Sequence[str] = (),
    profiles: Sequence[str] = (),
    options: BuildOptions = BuildOptions(),
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> list[BuiltEngine]:
    """Build the engines of a bundle's graphs; what is built already and fits is kept.

    Args:
        bundle: the bundle's folder.
        backend: `tensorrt` or `tensorrt_rtx`.
        graphs, precisions, profiles: see `plan`.
        options: of the builder.
        progress: called with engines done, engines in all, and what is being done.

    A backbone that does not build, such as a detector's, is left out with a warning in the log, unless `graphs` names
    it: a Matcher runs it with onnxruntime.

    Raises:
        InputError, BundleError, EngineError: see `find_target`, `plan` and `build_engine`.
    """
    target = find_target(backend, options)
    chosen = plan(bundle, graphs, precisions, profiles)
    built = []
    for done, (graph, precision, own) in enumerate(chosen):

        def show(phase: str, done: int = done, what: str = f"{graph} {precision}") -> None:
            progress(done, len(chosen), f"{what}: {phase}")

        try:
            built.append(build_engine(bundle, graph, precision, target, own, options, show))
        except EngineError as error:
            if graph != "backbone" or "backbone" in graphs:
                raise
            _log.warning("the backbone gets no engine, onnxruntime will run it: %s", error)
        progress(done + 1, len(chosen), f"{graph} {precision}")
    return built


def build_engine(
    bundle: str | Path,
    graph: str,
    precision: str,
    target: Target,
    profiles: Sequence[Profile] | None = None,
    options: BuildOptions = BuildOptions(),
    progress: Callable[[str], None] | None = None,
) -> BuiltEngine:
    """Build one engine, or find it in the cache.

    Args:
        bundle: the bundle's folder.
        graph, precision: as in the manifest.
        target: from `find_target`.
        profiles: None for `default_profiles`.
        options: of the builder.
        progress: called with the name of each phase of the build.

    Raises:
        EngineError: the graph does not parse or build (the message ends with the path of a shell script that reproduces
            it), or the engine did not get its precision.
        BundleError: the bundle lacks the graph, or its file was altered or keeps weights in another file.
    """
    spec = Manifest.load(bundle).graph(graph, precision)
    onnx, what = verified(bundle, spec.file, spec.sha256), f"{graph} at {precision}"
    if graph == "backbone" and target.flavor == "tensorrt_rtx":
        _check_operators(onnx, what)
    profiles = default_profiles(spec) if profiles is None else profiles
    shapes = [{name: asdict(shape) for name, shape in profile.items()} for profile in profiles]
    decided = asdict(options) | {"tf32": False}
    key = _key({"onnx": spec.sha256, "profiles": shapes, "options": decided, **asdict(target)})
    folder = Path(bundle).resolve() / ENGINES
    folder.mkdir(exist_ok=True)
    name = stem(graph, precision, target.flavor, key)
    path, sidecar = folder / f"{name}.engine", folder / f"{name}.json"
    with FileLock(folder / f".{name}.lock"):
        for leftover in folder.glob(f".{name}.build-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        cached, replaced = _cached(path, sidecar, key, spec.sha256, target)
        if cached is not None:
            os.utime(sidecar)  # find_engine prefers the engine that was requested last
            return BuiltEngine(path, cached, True, None)
        sidecar.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.build-", dir=folder) as work, naming(folder, Path(work)):
            request = {
                "flavor": target.flavor,
                "onnx": str(onnx),
                "profiles": shapes,
                "options": decided,
                "gpus": list(target.gpus),
                "timing_cache": str(folder / f"timing.{target.version}.{'-'.join(target.gpus)}.cache"),
                # TensorRT built it on its GPU, so it can be loaded and inspected there.
                "inspect": target.flavor == "tensorrt",
            }
            report = run_worker(Path(work), request, what, folder / f"{name}.reproduce.sh", progress)
            _check_tensors(spec, report, what)
            for warning in report["warnings"]:
                _log.warning("the %s engine of %s: %s", target.flavor, what, warning)
            check_precision(precision, report["layers"], report["network"], f"the {target.flavor} engine of {graph}")
            built = Path(work) / "engine"
            record = EngineRecord(
                key=key,
                graph=graph,
                precision=precision,
                onnx_sha256=spec.sha256,
                engine_sha256=sha256_file(built),
                engine_bytes=built.stat().st_size,
                profiles=tuple(profiles),
                options=decided,
                layers=report["layers"],
                memory=report["memory"],
                build_seconds=round(report["seconds"], 3),
                **asdict(target),
            )
            publish(built, path)
            text = Path(work) / "sidecar"
            text.write_text(record.to_json(), encoding="utf-8")
            publish(text, sidecar)
    return BuiltEngine(path, record, False, replaced)


def _key(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _cached(
    path: Path, sidecar: Path, key: str, onnx_sha256: str, target: Target
) -> tuple[EngineRecord | None, str | None]:
    """The record of the engine that is there, or why it must be built again; neither where there is none."""
    if not sidecar.exists():
        return None, None
    try:
        record = EngineRecord.from_file(sidecar)
        problem = why_unusable(Engine(path, record), onnx_sha256, target.version, target.os)
    except EngineError as error:
        return None, str(error)
    if record.key != key:
        problem = "its sidecar belongs to another engine"
    return (record, None) if problem is None else (None, problem)


def _check_operators(file: Path, what: str) -> None:
    """Refuse early what would not build after minutes: TensorRT-RTX 1.7 has no NonMaxSuppression."""
    from onnx import load

    if any(node.op_type == "NonMaxSuppression" for node in load(file).graph.node):
        raise EngineError(
            f"{what} has NonMaxSuppression, as detectors do, and TensorRT-RTX does not build it: onnxruntime runs the "
            "backbone beside the engines of the other graphs. Build without --graph backbone"
        )


def _check_tensors(spec: GraphSpec, report: Mapping[str, Any], what: str) -> None:
    """The parsed network must have the inputs and outputs of the manifest, by name and type."""
    for side, specs in (("inputs", spec.inputs), ("outputs", spec.outputs)):
        wanted = {(tensor.name, _TRT_TYPES.get(tensor.dtype, tensor.dtype)) for tensor in specs}
        found = {(tensor["name"], tensor["dtype"]) for tensor in report[side]}
        if wanted != found:
            raise EngineError(f"{what}: its {side} are {sorted(found)}, the manifest says {sorted(wanted)}")
