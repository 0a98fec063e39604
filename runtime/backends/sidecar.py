"""An engine's sidecar: what was built, from what and for where; and every check made before such an engine is used.

BUNDLE/engines/GRAPH.PRECISION.FLAVOR.KEY.engine has beside it a .json of the same name. The sidecar is written last, so
an engine without one was never finished. Reading sidecars loads neither TensorRT nor anything of the export side.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

from ..contract import Manifest, sha256_file
from ..errors import EngineError

SIDECAR_SCHEMA = 1
ENGINES = "engines"
Flavor = Literal["tensorrt", "tensorrt_rtx"]
FLAVORS: tuple[Flavor, ...] = get_args(Flavor)
EXTRA: Mapping[str, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}

# TensorRT-RTX compiles for the GPU when the engine is loaded, so one build serves every GPU from Ampere on.
PORTABLE_GPU = "ampere+"


@dataclass(frozen=True)
class InputRange:
    """Smallest, tuned-for and largest shape one input may have under a profile."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Whether `shape` lies within the range, axis by axis."""
        return len(shape) == len(self.min) and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )


Profile = Mapping[str, InputRange]  # by input name


@dataclass(frozen=True)
class EngineRecord:
    """All that is known of one engine file.

    Attributes:
        key: sha256 over canonical JSON of everything that decides the engine's bytes.
        graph, precision: which graph of the bundle.
        flavor, version: the library that built it, with its full version.
        gpu: `sm_90` and the like, or `ampere+` where one engine serves all from Ampere on.
        os: `linux-x86_64` and the like.
        onnx_sha256: of the ONNX file, weights included.
        engine_sha256, engine_bytes: of the engine file.
        profiles: in the engine's order.
        options: of the builder.
        layers: source of the reading ("engine inspector" or "build log"), counts by precision, and each layer.
        memory: bytes of weights and activations, where the builder told.
        build_seconds: wall time of the build.
    """

    key: str
    graph: str
    precision: str
    flavor: str
    version: str
    gpu: str
    os: str
    onnx_sha256: str
    engine_sha256: str
    engine_bytes: int
    profiles: tuple[Profile, ...]
    options: Mapping[str, Any]
    layers: Mapping[str, Any]
    memory: Mapping[str, Any]
    build_seconds: float

    @property
    def stem(self) -> str:
        """The file name without its suffix."""
        return stem(self.graph, self.precision, self.flavor, self.key)

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, two-space indent, final newline."""
        return json.dumps({"schema": SIDECAR_SCHEMA, **asdict(self)}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> EngineRecord:
        """Read `to_json`'s text; EngineError says what does not fit."""
        try:
            raw = json.loads(text)
            schema = raw.pop("schema")
            if schema != SIDECAR_SCHEMA:
                raise EngineError(f"the sidecar's schema is {schema!r}, this version reads {SIDECAR_SCHEMA}")
            raw["profiles"] = tuple(profile_from_json(profile) for profile in raw["profiles"])
            return cls(**raw)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise EngineError(f"the sidecar cannot be understood: {error!r}") from error

    def misfit(
        self,
        path: Path,
        onnx_sha256: str | None,
        version: str | None,
        os: str,
        capability: tuple[int, int] | None = None,
    ) -> str | None:
        """Why the engine at `path` must not be used here, or None.

        Args:
            path: the engine file.
            onnx_sha256: of the graph it should have been built from; None leaves that check out.
            version: of the library installed here, None where there is none.
            os: as `host_os` says.
            capability: compute capability of the GPU here; None where there is none.
        """
        if onnx_sha256 is not None and self.onnx_sha256 != onnx_sha256:
            return "it is stale: the bundle's graph changed since it was built"
        if version is None:
            return f"{self.flavor} is not installed: pip install 'chan-rt[{EXTRA[self.flavor]}]'"
        if self.version != version and not (self.options.get("version_compatible") and _newer(version, self.version)):
            return f"it is foreign: built by {self.flavor} {self.version}, installed is {version}"
        if self.os != os:
            return f"it is foreign: built on {self.os}, this is {os}"
        if capability is not None and (reason := self.misfit_gpu(capability)) is not None:
            return reason
        if not path.is_file():
            return "its engine file is missing"
        if path.stat().st_size != self.engine_bytes:
            return f"it is truncated: {path.stat().st_size} bytes, the sidecar says {self.engine_bytes}"
        if sha256_file(path) != self.engine_sha256:
            return "it is corrupt: its sha256 is not the sidecar's"
        return None

    def misfit_gpu(self, capability: tuple[int, int]) -> str | None:
        """Why the engine cannot run on a GPU of this compute capability, or None."""
        major, minor = capability
        if self.gpu == PORTABLE_GPU:
            return None if capability >= (8, 0) else f"it needs compute capability 8.0 or newer, got {major}.{minor}"
        here = f"sm_{major}{minor}"
        return None if self.gpu == here else f"it is foreign: built for {self.gpu}, this GPU is {here}"


def profile_from_json(raw: Mapping[str, Mapping[str, Any]]) -> dict[str, InputRange]:
    """Rebuild a profile from plain lists."""
    return {
        name: InputRange(tuple(shapes["min"]), tuple(shapes["opt"]), tuple(shapes["max"]))
        for name, shapes in raw.items()
    }


def stem(graph: str, precision: str, flavor: str, key: str) -> str:
    """File name, without suffix, of the engine with this key."""
    return f"{graph}.{precision}.{flavor}.{key[:16]}"


def host_os() -> str:
    """Operating system and processor, as they enter an engine's key."""
    return f"{platform.system().lower()}-{platform.machine().lower()}"


def installed_version(flavor: str) -> str | None:
    """Full version of the flavor's library, read without loading it; None where it is not installed."""
    for package in (flavor, f"{flavor}-cu13", f"{flavor}-cu12"):  # the plain one only points to one of the others
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def read_record(path: Path) -> EngineRecord:
    """Read one sidecar file; EngineError names the file."""
    try:
        return EngineRecord.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, EngineError) as error:
        raise EngineError(f"{path}: {error}") from error


def records(bundle: str | Path, pattern: str = "*") -> Iterator[tuple[Path, EngineRecord | EngineError]]:
    """Every finished engine of a bundle with its sidecar, or with why that cannot be read; the newest first.

    Args:
        bundle: the bundle's folder.
        pattern: what the sidecar's name must match but for its suffix.
    """
    found = (Path(bundle) / ENGINES).glob(f"{pattern}.json")
    for path in sorted(found, key=lambda path: (-path.stat().st_mtime_ns, path.name)):
        try:
            yield path.with_suffix(".engine"), read_record(path)
        except EngineError as error:
            yield path.with_suffix(".engine"), error


def find_engine(bundle: str | Path, graph: str, precision: str, flavor: str) -> Path:
    """The newest engine of a bundle's graph that may be used here, its bytes verified.

    Raises:
        BundleError: the bundle has no such graph at that precision.
        EngineError: there is no usable engine; says why each candidate is not one, and the command that builds one.
    """
    spec = Manifest.load(bundle).graph(graph, precision)
    version, os, capability = installed_version(flavor), host_os(), here_capability()
    reasons = []
    for path, record in records(bundle, stem(graph, precision, flavor, "*")):
        if isinstance(record, EngineError):
            reasons.append(str(record))
            continue
        reason = record.misfit(path, spec.sha256, version, os, capability)
        if reason is None:
            return path
        reasons.append(f"{path.name}: {reason}")
    command = f"chan build {bundle} --backend {flavor} --precision {precision} --graph {graph}"
    raise EngineError("; ".join([f"no usable {flavor} engine of {graph} at {precision}", *reasons, f"run: {command}"]))


def here_capability() -> tuple[int, int] | None:
    """Compute capability of the first GPU, which engines run on; None where there is none."""
    from ..gpu import examine_gpu

    gpus = examine_gpu().gpus
    return gpus[0].capability if gpus else None


def _newer(version: str, built_by: str) -> bool:
    """Whether `version` may load a version-compatible engine of `built_by`: not older."""

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split(".") if part.isdigit())

    return numbers(version) >= numbers(built_by)
