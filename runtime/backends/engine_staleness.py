"""Whether an engine may be used here: not stale, not foreign to this library, system and GPU, and its bytes intact."""

from __future__ import annotations

from pathlib import Path

from ..contract import Manifest, sha256_file
from ..errors import EngineError, quoted
from ..extras import install_command
from ..gpu import architecture, examine_gpu
from .sidecar import AMPERE_PLUS, Engine, EngineRecord, host_os, installed_version, read_sidecars, stem
from .table import BACKENDS


def why_unusable(
    engine: Engine,
    onnx_sha256: str | None,
    version: str | None,
    os: str,
    capability: tuple[int, int] | None = None,
) -> str | None:
    """Why an engine must not be used here, or None.

    Args:
        engine: the file and its sidecar.
        onnx_sha256: of the graph it should have been built from; None leaves that check out.
        version: of the library installed here, None where there is none.
        os: as `host_os` returns it.
        capability: compute capability of the GPU here; None where there is none.
    """
    record, path = engine.record, engine.path
    if onnx_sha256 is not None and record.onnx_sha256 != onnx_sha256:
        return "it is stale: the bundle's graph changed since it was built"
    if capability is not None and (reason := why_foreign_to_gpu(record, capability)) is not None:
        return reason
    if version is None:
        extra = examine_gpu().extra_for(BACKENDS[record.flavor].extra)
        return f"{record.flavor} is not installed: {install_command(extra)}"
    if record.version != version and not (record.options.get("version_compatible") and _newer(version, record.version)):
        return f"it is foreign: built by {record.flavor} {record.version}, installed is {version}"
    if record.os != os:
        return f"it is foreign: built on {record.os}, this is {os}"
    if not path.is_file():
        return "its engine file is missing"
    if path.stat().st_size != record.engine_bytes:
        return f"it is truncated: {path.stat().st_size} bytes, its sidecar records {record.engine_bytes}"
    if sha256_file(path) != record.engine_sha256:
        return "it is corrupt: its sha256 is not the sidecar's"
    return None


def why_unusable_here(engine: Engine, onnx_sha256: str | None, capability: tuple[int, int] | None) -> str | None:
    """`why_unusable` for this machine's libraries and operating system; `capability` from `capability_here`."""
    return why_unusable(engine, onnx_sha256, installed_version(engine.record.flavor), host_os(), capability)


def why_foreign_to_gpu(record: EngineRecord, capability: tuple[int, int]) -> str | None:
    """Why an engine cannot run on a GPU of this compute capability, or None."""
    if record.gpus == (AMPERE_PLUS,):
        major, minor = capability
        return None if capability >= (8, 0) else f"it needs compute capability 8.0 or newer, got {major}.{minor}"
    here = architecture(capability)
    return None if here in record.gpus else f"it is foreign: built for {', '.join(record.gpus)}, this GPU is {here}"


def find_engine(bundle: str | Path, graph: str, precision: str, flavor: str, gpu: int = 0) -> Path:
    """The newest engine of a bundle's graph that may be used on a GPU of this machine, its bytes verified.

    Raises:
        BundleError: the bundle has no such graph at that precision.
        EngineError: no engine is usable; the message gives the reason for each and the command that builds one.
    """
    spec = Manifest.load(bundle).graph(graph, precision)
    sidecars = read_sidecars(bundle, stem(graph, precision, flavor, "*"))
    capability = capability_here(gpu)
    reasons = []
    for engine in sidecars.engines:
        reason = why_unusable_here(engine, spec.sha256, capability)
        if reason is None:
            return engine.path
        reasons.append(f"{engine.path.name}: {reason}")
    reasons += map(str, sidecars.unreadable)
    command = f"chan build {quoted(bundle)} --backend {flavor} --precision {precision} --graph {graph}"
    raise EngineError("; ".join([f"no usable {flavor} engine of {graph} at {precision}", *reasons, f"run: {command}"]))


def capability_here(gpu: int = 0) -> tuple[int, int] | None:
    """Compute capability of a GPU, by the number that CUDA gives it; None where there is none."""
    gpus = examine_gpu().only(gpu).gpus
    return gpus[0].capability if gpus else None


def _newer(version: str, built_by: str) -> bool:
    """Whether `version` may load a version-compatible engine of `built_by`: not older."""

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split(".") if part.isdigit())

    return numbers(version) >= numbers(built_by)
