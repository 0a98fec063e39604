"""An engine's sidecar: what was built, from what and for where. `engine_staleness` judges whether it may be used.

BUNDLE/engines/GRAPH.PRECISION.FLAVOR.KEY.engine has beside it a .json of the same name. The sidecar is written last, so
an engine without one was never finished. Reading sidecars loads neither TensorRT nor anything of the export side.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

from ..errors import EngineError, InputError, reason_of
from ..strict_json import MAX_INTEGER, decode, parse_json, read_json, show
from .table import Flavor

SIDECAR_SCHEMA = 2
ENGINES = "engines"

# What TensorRT calls its hardware-compatible engines.
AMPERE_PLUS = "ampere+"


@dataclass(frozen=True)
class InputRange:
    """Smallest, tuned-for and largest shape one input may have under a profile."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise EngineError(f"a profile's shapes must be of one rank, got {self.min}, {self.opt}, {self.max}")
        if not all(0 <= a <= b <= c <= MAX_INTEGER for a, b, c in zip(self.min, self.opt, self.max, strict=True)):
            raise EngineError(f"a profile must satisfy 0 <= min <= opt <= max, got {self.min}, {self.opt}, {self.max}")


Profile = Mapping[str, InputRange]  # by input name


class Layer(TypedDict):
    """One layer of an engine: its name, its kind and the precision it computes in."""

    name: str
    type: str
    precision: str


class Layers(TypedDict):
    """What an engine consists of.

    source: "engine inspector" or "build log"; by_precision and matrix: how many layers, and how many matrix products,
    compute in each precision; each: every layer.
    """

    source: str
    by_precision: dict[str, int]
    matrix: dict[str, int]
    each: list[Layer]


class Memory(TypedDict, total=False):
    """Bytes of an engine's weights, and of its activations for each profile."""

    weight_bytes: int
    activation_bytes: list[int]


@dataclass(frozen=True)
class EngineRecord:
    """All that is known of one engine file.

    Attributes:
        key: sha256 over canonical JSON of everything that decides the engine's bytes.
        graph, precision: which graph of the bundle.
        flavor, version: the library that built it, with its full version.
        gpus: the architectures that it runs on, `sm_90` and the like; `ampere+` alone for an engine of TensorRT that
            runs on every GPU from Ampere on.
        os: `linux-x86_64` and the like.
        onnx_sha256: of the ONNX file, weights included.
        engine_sha256, engine_bytes: of the engine file.
        profiles: in the engine's order.
        options: of the builder; `tf32` is always False.
        layers: as read back from the engine.
        memory: empty where the builder did not report it.
        build_seconds: wall time of the build.
    """

    key: str
    graph: str
    precision: str
    flavor: Flavor
    version: str
    gpus: tuple[str, ...]
    os: str
    onnx_sha256: str
    engine_sha256: str
    engine_bytes: int
    profiles: tuple[Profile, ...]
    options: Mapping[str, Any]
    layers: Layers
    memory: Memory
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
        """Read `to_json`'s text; EngineError names what does not fit."""
        try:
            return cls._from_parsed(parse_json(text))
        except InputError as error:
            raise EngineError(f"the sidecar cannot be understood: {error}") from error

    @classmethod
    def from_file(cls, path: Path) -> EngineRecord:
        """Read a sidecar file; EngineError names it."""
        try:
            return cls._from_parsed(read_json(path))
        except InputError as error:
            raise EngineError(f"{path}: the sidecar cannot be understood: {error}") from error
        except (OSError, EngineError) as error:
            raise EngineError(f"{path}: {reason_of(error)}") from error

    @classmethod
    def _from_parsed(cls, raw: object) -> EngineRecord:
        fields = dict(decode(dict[str, Any], raw, "sidecar"))
        schema = fields.pop("schema", None)
        if type(schema) is not int or schema != SIDECAR_SCHEMA:
            raise EngineError(f"the sidecar's schema is {show(schema)}, this version reads {SIDECAR_SCHEMA}")
        return decode(cls, fields, "sidecar")


@dataclass(frozen=True)
class Engine:
    """An engine file and the record in its sidecar."""

    path: Path
    record: EngineRecord


@dataclass(frozen=True)
class Sidecars:
    """The sidecars of a bundle.

    Attributes:
        engines: those that can be read, the newest first.
        unreadable: why each of the others cannot be read.
    """

    engines: tuple[Engine, ...]
    unreadable: tuple[EngineError, ...]


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


def read_sidecars(bundle: str | Path, pattern: str = "*") -> Sidecars:
    """Read every sidecar of a bundle.

    Args:
        bundle: the bundle's folder.
        pattern: what a sidecar's name must match, without its suffix.
    """
    engines, unreadable = [], []
    found = (Path(bundle) / ENGINES).glob(f"{pattern}.json")
    for path in sorted(found, key=lambda path: (-path.lstat().st_mtime_ns, path.name)):
        try:
            engines.append(Engine(path.with_suffix(".engine"), EngineRecord.from_file(path)))
        except EngineError as error:
            unreadable.append(error)
    return Sidecars(tuple(engines), tuple(unreadable))
