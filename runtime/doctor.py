"""The report of `chan doctor`: GPU, driver, libraries and every backend, each started once, and what to install."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict, dataclass
from typing import Any, get_args

from .backends.probe import BackendReport, examine_backend, libraries_that_do_not_load
from .backends.table import BACKENDS
from .errors import BackendError
from .extras import EXTRAS, install_command, package_version
from .gallery.compiled import need_core
from .gallery.kernels.choose import open_kernel
from .gallery.scanner import ScanName
from .gpu import GpuReport, examine_gpu


@dataclass(frozen=True)
class MachineReport:
    """Everything `chan doctor` reports.

    Attributes:
        python: version of Python.
        system: operating system and processor.
        gpu: the GPUs found.
        backends: every backend, in the order in which `auto` tries them.
        scans: what searches a gallery -> why it does not work here, or None.
        instructions: instruction sets that the compiled search can use here, the best first.
        extras: extra -> package -> version, None where it is not installed.
        warnings: what is installed in a way that leads to errors.
    """

    python: str
    system: str
    gpu: GpuReport
    backends: tuple[BackendReport, ...]
    scans: dict[str, str | None]
    instructions: tuple[str, ...]
    extras: dict[str, dict[str, str | None]]
    warnings: tuple[str, ...]

    @property
    def auto(self) -> str | None:
        """The backend that `auto` takes where the bundle has engines for each that runs; None where none runs."""
        return next((backend.name for backend in self.backends if backend.runs), None)

    @property
    def healthy(self) -> bool:
        """Whether at least one backend runs here."""
        return any(backend.runs for backend in self.backends)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "auto": self.auto, "healthy": self.healthy}


def examine(index: int = 0) -> MachineReport:
    """Examine the machine and try every backend, those of a GPU on the one that CUDA gives this number.

    Raises:
        InputError: there is no such GPU.
    """
    gpu = examine_gpu()
    one = gpu.only(index)
    backends = tuple(examine_backend(name, one) for name in BACKENDS)
    scans = {name: _scan_problem(name) for name in get_args(ScanName)}
    return MachineReport(
        python=sys.version.split()[0],
        system=platform.platform(),
        gpu=gpu,
        backends=backends,
        scans=scans,
        instructions=tuple(need_core().features()) if scans["compiled"] is None else (),
        extras={extra: {name: package_version(name) for name in packages} for extra, packages in EXTRAS.items()},
        warnings=tuple(_warnings()),
    )


def _scan_problem(name: ScanName) -> str | None:
    try:
        if name == "compiled":
            need_core()
        else:
            open_kernel(name)
    except BackendError as error:
        return str(error)
    return None


def _warnings() -> list[str]:
    warnings = []
    if package_version("onnxruntime") and package_version("onnxruntime-gpu"):
        warnings.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: uninstall both, "
            f"then {install_command('cpu')}, or {install_command('gpu')}"
        )
    if package_version("tensorrt") and package_version("onnxruntime-gpu"):
        warnings.append(
            "onnxruntime-gpu's own TensorRT provider may link another TensorRT than the one installed: this project "
            "uses its CUDA provider only"
        )
    return warnings + [f"a provider library does not load: {text}" for text in libraries_that_do_not_load()]
