"""Whether a backend runs on this machine: each one is started, and its report names what is missing."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from ..errors import BackendError
from ..extras import install_alone, install_command, package_version
from ..gpu import CUDA_12, NEWEST_CUDA, GpuReport, examine_gpu, remedy_of_driver, too_old_for
from ..onnx_session import FATAL, import_onnxruntime, open_session
from .onnxruntime import preload_cuda
from .onnxruntime_rtx import ALONE, device_of, devices
from .recording import SESSIONS
from .rtx_gpus import INSTEAD, why_not_served
from .sidecar import installed_version
from .table import BACKENDS, BackendInfo

# One Identity node on one float32, opset 13: enough to make onnxruntime show whether a provider works.
_IDENTITY = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
_ELSEWHERE = "a machine with an NVIDIA GPU and its driver; here use the backend onnxruntime"


@dataclass(frozen=True)
class BackendReport:
    """What became of trying a backend.

    Attributes:
        name: the backend's.
        version: of its library; None where that is not installed.
        runs: whether it runs here.
        builds: whether engines for it can be built here; None for a backend that runs ONNX files.
        problem: why it does not run, or does not build.
        remedy: what would help.
    """

    name: str
    version: str | None
    runs: bool
    builds: bool | None
    problem: str | None = None
    remedy: str | None = None


def examine_backend(name: str, gpu: GpuReport) -> BackendReport:
    """Try a backend of `table.BACKENDS`, given the GPUs that `examine_gpu` found, of which the first is tried."""
    info = BACKENDS[name]
    if info.runs == "engine":
        return _examine_engines(name, info, gpu)
    cuda = info.provider == "CUDAExecutionProvider"
    installed, install = installed_packages(info), _install_command(info, gpu)
    version = package_version(installed[0]) if installed else None
    # The GPU comes first: where it cannot be served, nothing is to be installed.
    if name == "onnxruntime_rtx" and (foreign := why_not_served(gpu)) is not None:
        return BackendReport(name, version, False, None, foreign, INSTEAD)
    if version is None:
        if info.gpu and (nothing := _without_gpu(name, None, None, gpu)) is not None:
            return nothing
        missing = install_alone(gpu.extra_for(info.extra)) if cuda else install
        return BackendReport(name, None, False, None, f"{info.package} is not installed", missing)
    if info.gpu and gpu.problem is not None:
        return BackendReport(name, version, False, None, f"no usable GPU: {gpu.problem}", _remedy(gpu, install))
    problem = _plugin_problem(gpu.first) if info.provider is None else _provider_problem(info.provider, gpu.first)
    if problem is None:
        return BackendReport(name, version, True, None)
    if problem.endswith(ALONE):
        return BackendReport(name, version, False, None, problem.removesuffix(f"; {ALONE}"), ALONE)
    if cuda and package_version("onnxruntime") is not None:  # the packages for CPU and GPU are one module
        installed.insert(0, "onnxruntime")
    if cuda or (info.gpu and gpu.cuda_major == CUDA_12):
        install = f"pip uninstall {' '.join(installed)} && {install}"
    return BackendReport(name, version, False, None, problem, install)


def check_gpu(name: str, index: int = 0) -> None:
    """BackendError where a GPU of this machine is not one that the backend runs on: no engine would help there."""
    gpu = examine_gpu().only(index)
    if gpu.gpus and not (report := examine_backend(name, gpu)).runs:
        raise BackendError(f"{name} cannot run here: {report.problem}; {report.remedy}")


def installed_packages(info: BackendInfo) -> list[str]:
    """The installed packages that bring a backend's library, as pip calls them; the first has its version."""
    if info.provider is not None:  # onnxruntime for GPUs runs on the CPU, too
        names = [info.package, "onnxruntime-gpu"]
    else:  # the plain name only points to the package for one CUDA, and that to its parts
        own = [f"{info.package}{cuda}" for cuda in ("", f"-cu{NEWEST_CUDA}", f"-cu{CUDA_12}")]
        names = own + [f"{package}-{part}" for package in own for part in ("bindings", "libs")]
    return [name for name in dict.fromkeys(names) if package_version(name) is not None]


def _install_command(info: BackendInfo, gpu: GpuReport) -> str:
    """The pip command that installs a backend's library for the CUDA that the driver serves."""
    return install_command(gpu.extra_for(info.extra) if info.gpu else info.extra)


def _remedy(gpu: GpuReport, install: str) -> str:
    """What helps where there is no usable GPU: libraries for the driver there is, or another machine."""
    return _ELSEWHERE if gpu.remedy is None else remedy_of_driver(gpu, install)


def _without_gpu(name: str, version: str | None, builds: bool | None, gpu: GpuReport) -> BackendReport | None:
    """The report on a machine that has no GPU, where installing a library would not help; None where there is one."""
    if gpu.problem is None or gpu.gpus or gpu.remedy is not None:
        return None
    return BackendReport(name, version, False, builds, f"no usable GPU: {gpu.problem}", _ELSEWHERE)


def _examine_engines(name: str, info: BackendInfo, gpu: GpuReport) -> BackendReport:
    version, install = installed_version(name), _install_command(info, gpu)
    foreign = why_not_served(gpu) if name == "tensorrt_rtx" else None
    if version is None:
        if name == "tensorrt" and (nothing := _without_gpu(name, None, False, gpu)) is not None:
            return nothing  # TensorRT-RTX builds engines without a GPU
        missing = f"{name} is not installed{'' if foreign is None else f', and {foreign}'}"
        return BackendReport(name, None, False, False, missing, install if foreign is None else INSTEAD)
    try:
        library = importlib.import_module(name)
    except Exception as error:  # a broken installation raises what it likes: OSError, ImportError, RuntimeError
        remedy = f"{install} again" if foreign is None else INSTEAD
        return BackendReport(name, version, False, False, f"{name} does not load: {error}", remedy)
    version = str(library.__version__)
    # TensorRT-RTX leaves the GPU's part to the machine that runs the engine; TensorRT times kernels while it builds.
    has_polygraphy = package_version("polygraphy") is not None
    builds = has_polygraphy and (name == "tensorrt_rtx" or gpu.problem is None)
    if foreign is not None:
        return BackendReport(name, version, False, builds, foreign, INSTEAD)
    if gpu.problem is not None:
        return BackendReport(name, version, False, builds, f"no usable GPU: {gpu.problem}", _remedy(gpu, install))
    if importlib.util.find_spec("cuda") is None:
        return BackendReport(name, version, False, builds, "cuda-python is not installed", install)
    newest = f"{info.package}-cu{NEWEST_CUDA}"
    if package_version(newest) is not None and (problem := too_old_for(gpu, newest, NEWEST_CUDA)) is not None:
        install = f"pip uninstall {' '.join(installed_packages(info))} && {install}"
        return BackendReport(name, version, False, builds, problem, remedy_of_driver(gpu, install))
    return BackendReport(name, version, True, builds, None if builds else "polygraphy is not installed", None)


def _plugin_problem(index: int) -> str | None:
    try:
        device_of(devices(import_onnxruntime("the backend onnxruntime_rtx")), index, examine_gpu())
    except BackendError as error:
        return str(error)
    return None


def _provider_problem(provider: str, index: int) -> str | None:
    """Why onnxruntime does not run with a provider, on the GPU of that number where it uses one, or None."""
    try:
        ort = import_onnxruntime("an onnxruntime backend")
        if provider == "CUDAExecutionProvider":
            preload_cuda(ort)
        active = ort.get_available_providers()
        if provider in active:
            with SESSIONS.together():
                options = {"device_id": str(index)} if provider == "CUDAExecutionProvider" else {}
                active = open_session(_IDENTITY, 1, provider=(provider, options), log=FATAL).get_providers()
    except Exception as error:  # onnxruntime's own exceptions share no public base class
        return f"{provider} does not start: {error}"
    if active[0] == provider:
        return None
    reasons = "; ".join(libraries_that_do_not_load())
    return f"onnxruntime has {', '.join(active)} instead of {provider}{'; ' if reasons else ''}{reasons}"


def libraries_that_do_not_load() -> list[str]:
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
