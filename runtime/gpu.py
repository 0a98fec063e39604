"""The NVIDIA GPUs of this machine, as the CUDA driver reports them."""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass, replace
from typing import Any

from .errors import InputError, MissingExtra
from .extras import install_command, needs

CUDA_12, NEWEST_CUDA = 12, 13
FIRST_DRIVER = "R580"  # that serves CUDA 13: https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/ (CUDA Driver)


@dataclass(frozen=True)
class Gpu:
    """One CUDA device: its name, compute capability and memory."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int

    @property
    def architecture(self) -> str:
        """`sm_90` and the like."""
        return architecture(self.capability)


def device_indices(device: str) -> tuple[int, ...]:
    """The numbers of the GPUs that a name stands for, as CUDA counts those it shows; none for `cpu`.

    device: `cpu`, `cuda` for the first GPU, `cuda:N`, or several as in `cuda:0,1`.

    Raises:
        InputError: any other name, or one GPU twice.
    """
    if device == "cpu":
        return ()
    if (named := re.fullmatch(r"cuda(?::(\d{1,3}(?:,\d{1,3})*))?", device)) is None:
        raise InputError(f"device must be cpu, cuda, cuda:N or cuda:N,M, got {device!r}")
    numbers = tuple(int(number) for number in (named[1] or "0").split(","))
    if len(set(numbers)) < len(numbers):
        raise InputError(f"device must name each GPU once, got {device!r}")
    return numbers


def architecture(capability: tuple[int, int]) -> str:
    """`sm_90` for (9, 0)."""
    return f"sm_{capability[0]}{capability[1]}"


@dataclass(frozen=True)
class GpuReport:
    """The GPUs found, and why there is none to use.

    Attributes:
        gpus: in CUDA's order, in which `CUDA_VISIBLE_DEVICES` and MIG leave some out.
        driver: its version.
        cuda: the newest CUDA that the driver serves.
        problem: why there is no usable GPU.
        remedy: what would help, where that is known.
    """

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    problem: str | None = None
    remedy: str | None = None

    @property
    def extra(self) -> str:
        """The extra of the libraries that this driver serves: `gpu-cu12`, or `gpu-cu13` also where none is known."""
        return f"gpu-cu{CUDA_12}" if self.cuda_major == CUDA_12 else f"gpu-cu{NEWEST_CUDA}"

    @property
    def cuda_major(self) -> int | None:
        """13 of CUDA 13.0; None where there is no driver."""
        return None if self.cuda is None else int(self.cuda.partition(".")[0])


def examine_gpu() -> GpuReport:
    """Return the devices that the CUDA driver finds, or why there is none to use."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as error:
        return GpuReport(problem=f"the NVIDIA driver's library does not load ({error})")
    try:
        with needs("cuda.bindings", "examining the GPU", "rtx"):
            from cuda.bindings import runtime as cudart
    except MissingExtra as error:
        return GpuReport(problem=str(error))
    status, cuda = cudart.cudaDriverGetVersion()
    version = f"{cuda // 1000}.{cuda % 1000 // 10}" if status == 0 and cuda else None
    found = GpuReport(driver=_driver_version(), cuda=version)
    if (problem := too_old_for(found, "cuda-python", _cuda_of(cudart))) is not None:
        return replace(found, problem=problem, remedy=remedy_of_driver(found))
    status, count = cudart.cudaGetDeviceCount()
    if status != 0 or not count:
        text = cudart.cudaGetErrorString(status)[1].decode() if status != 0 else "no CUDA device"
        return replace(found, problem=text)
    gpus = []
    for index in range(count):
        status, properties = cudart.cudaGetDeviceProperties(index)
        if status != 0:
            return replace(found, problem=f"GPU {index}: {status.name}")
        capability = (properties.major, properties.minor)
        gpus.append(Gpu(properties.name.decode().rstrip("\0"), capability, properties.totalGlobalMem))
    return replace(found, gpus=tuple(gpus))


def too_old_for(found: GpuReport, package: str, cuda: int) -> str | None:
    """The problem of a package for a CUDA, given by its major version, where the driver does not serve it."""
    if found.cuda_major is None or found.cuda_major >= cuda:
        return None
    return f"driver {found.driver or 'of unknown version'} serves CUDA {found.cuda}, {package} here is for CUDA {cuda}"


def remedy_of_driver(found: GpuReport, install: str | None = None) -> str:
    """What helps where libraries are newer than the driver.

    Args:
        found: the driver.
        install: the command that installs what the driver serves; None for the extra of the GPU backends.
    """
    newer = f"install NVIDIA driver {FIRST_DRIVER} or newer"
    return f"{newer}, or: {install or install_command(found.extra)}" if found.cuda_major == CUDA_12 else newer


def _cuda_of(cudart: Any) -> int:
    """The major version of CUDA that cuda-python was made for."""
    status, version = cudart.cudaRuntimeGetVersion()
    return int(version) // 1000 if status == 0 else 0


def _driver_version() -> str | None:
    try:
        from cuda.bindings import nvml

        nvml.init_v2()
        try:
            return str(nvml.system_get_driver_version())
        finally:
            nvml.shutdown()
    except Exception:  # NVML is a courtesy: containers may hide it, and each cuda-python names its errors differently
        return None
