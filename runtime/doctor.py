"""What this machine can run: GPU, driver, libraries and every backend tried for real; for the rest, what to install."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

from .backends.onnxruntime import preload_cuda
from .backends.onnxruntime_rtx import EXTRA as PLUGIN_EXTRA
from .backends.onnxruntime_rtx import devices
from .backends.sidecar import EXTRA, installed_version
from .errors import BackendError
from .extras import EXTRAS, install_command
from .gallery.kernels.base import KernelName
from .gallery.kernels.choose import open_kernel
from .gpu import GpuReport, examine_gpu

# One Identity node on one float32, opset 13: enough to make onnxruntime show whether a provider works.
_IDENTITY = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
_ANOTHER_MACHINE = "a machine with an NVIDIA GPU and its driver; here use the backend onnxruntime"


@dataclass(frozen=True)
class BackendReport:
    """Whether a backend runs here and builds engines here (None: it needs none); if not, why, and what would help."""

    name: str
    version: str | None
    runs: bool
    builds: bool | None
    problem: str | None = None
    remedy: str | None = None


@dataclass(frozen=True)
class Report:
    """Everything `chan doctor` knows."""

    python: str
    system: str
    gpu: GpuReport
    backends: tuple[BackendReport, ...]
    scans: dict[str, str | None]  # of each kernel that scans a gallery, why it does not work here
    extras: dict[str, dict[str, str | None]]
    warnings: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether at least one backend runs here."""
        return any(backend.runs for backend in self.backends)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "healthy": self.healthy}


def examine() -> Report:
    """Look at the machine and try every backend."""
    gpu = examine_gpu()
    backends = tuple(examine_backend(name, gpu) for name in BACKENDS)
    return Report(
        python=sys.version.split()[0],
        system=platform.platform(),
        gpu=gpu,
        backends=backends,
        scans={name: _scan_problem(name) for name in get_args(KernelName)},
        extras={extra: {package: _version(package) for package in packages} for extra, packages in EXTRAS.items()},
        warnings=tuple(_warnings()),
    )


def _scan_problem(name: KernelName) -> str | None:
    try:
        open_kernel(name)
    except BackendError as error:
        return str(error)
    return None


def examine_backend(name: str, gpu: GpuReport) -> BackendReport:
    """Try one backend by its name (see BACKENDS)."""
    return BACKENDS[name](name, gpu)


def _tensorrt(name: str, gpu: GpuReport) -> BackendReport:
    extra = EXTRA[name]
    version = installed_version(name)
    install = install_command(extra)
    if version is None:
        return BackendReport(name, None, False, False, f"{name} is not installed", install)
    try:
        library = importlib.import_module(name)
    except Exception as error:  # a broken installation raises what it likes: OSError, ImportError, RuntimeError
        return BackendReport(name, version, False, False, f"{name} does not load: {error}", f"{install} again")
    version = str(library.__version__)
    # TensorRT-RTX leaves the GPU's part to the machine that runs the engine; TensorRT times kernels while it builds.
    has_polygraphy = _version("polygraphy") is not None
    builds = has_polygraphy and (name == "tensorrt_rtx" or gpu.problem is None)
    if gpu.problem is not None:
        return BackendReport(name, version, False, builds, f"no usable GPU: {gpu.problem}", _ANOTHER_MACHINE)
    if importlib.util.find_spec("cuda") is None:
        return BackendReport(name, version, False, builds, "cuda-python is not installed", install)
    used = gpu.gpus[0]
    if name == "tensorrt_rtx" and used.capability < (8, 0):
        problem = f"{used.name} is older than Ampere (compute capability 8.0), which portable engines need"
        return BackendReport(name, version, False, builds, problem, "use the backend tensorrt or onnxruntime")
    return BackendReport(name, version, True, builds, None if builds else "polygraphy is not installed", None)


def _onnxruntime_cuda(name: str, gpu: GpuReport) -> BackendReport:
    install = f"pip uninstall onnxruntime && {install_command('gpu')}"
    return _provider(name, "CUDAExecutionProvider", "onnxruntime-gpu", gpu.problem, install)


def _onnxruntime_rtx(name: str, gpu: GpuReport) -> BackendReport:
    version = _version("onnxruntime-ep-nv-tensorrt-rtx")
    install = install_command(PLUGIN_EXTRA)
    if version is None:
        return BackendReport(name, None, False, None, "onnxruntime's TensorRT-RTX plugin is not installed", install)
    if gpu.problem is not None:
        return BackendReport(name, version, False, None, f"no usable GPU: {gpu.problem}", _ANOTHER_MACHINE)
    try:
        import onnxruntime

        devices(onnxruntime)
    except (ImportError, BackendError) as error:
        return BackendReport(name, version, False, None, str(error), install)
    return BackendReport(name, version, True, None)


def _onnxruntime(name: str, gpu: GpuReport) -> BackendReport:
    package = "onnxruntime" if _version("onnxruntime") else "onnxruntime-gpu"
    return _provider(name, "CPUExecutionProvider", package, None, install_command("cpu"))


def _provider(name: str, provider: str, package: str, gpu_problem: str | None, install: str) -> BackendReport:
    version = _version(package)
    if version is None:
        return BackendReport(name, None, False, None, f"{package} is not installed", install)
    if gpu_problem is not None:
        return BackendReport(name, version, False, None, f"no usable GPU: {gpu_problem}", _ANOTHER_MACHINE)
    try:
        import onnxruntime

        if provider == "CUDAExecutionProvider":
            preload_cuda(onnxruntime)
        active = onnxruntime.get_available_providers()
        if provider in active:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            active = onnxruntime.InferenceSession(_IDENTITY, options, providers=[provider]).get_providers()
    except Exception as error:  # onnxruntime's own exceptions share no public base class
        return BackendReport(name, version, False, None, f"{provider} does not start: {error}", install)
    if active[0] != provider:
        reasons = "; ".join(_libraries_that_do_not_load())
        problem = f"onnxruntime has {', '.join(active)} instead of {provider}{'; ' if reasons else ''}{reasons}"
        return BackendReport(name, version, False, None, problem, install)
    return BackendReport(name, version, True, None)


BACKENDS: dict[str, Callable[[str, GpuReport], BackendReport]] = {
    "tensorrt": _tensorrt,
    "tensorrt_rtx": _tensorrt,
    "onnxruntime_cuda": _onnxruntime_cuda,
    "onnxruntime_rtx": _onnxruntime_rtx,
    "onnxruntime": _onnxruntime,
}


def _warnings() -> list[str]:
    warnings = []
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        warnings.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: uninstall both, "
            f"then {install_command('cpu')}, or {install_command('gpu')}"
        )
    if _version("tensorrt") and _version("onnxruntime-gpu"):
        warnings.append(
            "onnxruntime-gpu's own TensorRT provider may link another TensorRT than the one installed: this project "
            "uses its CUDA provider only"
        )
    return warnings + [f"a provider library does not load: {text}" for text in _libraries_that_do_not_load()]


def _libraries_that_do_not_load() -> list[str]:
    """Provider libraries of onnxruntime, and NVIDIA's plugin, that the loader refuses, each with its reason."""
    folders = []
    for package, inner in (("onnxruntime", "capi"), ("onnxruntime_ep_nv_tensorrt_rtx", ".")):
        spec = importlib.util.find_spec(package)
        folders += [Path(place) / inner for place in (spec.submodule_search_locations if spec else None) or ()]
    found = [path for folder in folders for path in folder.glob("*providers_*")]
    # The shared library must come first: the others take their host's functions from it.
    libraries = sorted(found, key=lambda path: ("shared" not in path.name, path.name))
    failures = []
    for library in (path for path in libraries if path.suffix in (".so", ".dll")):
        try:
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            failures.append(f"{library.name}: {error}")
    return failures


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
