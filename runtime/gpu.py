"""The NVIDIA GPUs of this machine, as the CUDA driver reports them."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

from .errors import MissingExtra
from .extras import needs


@dataclass(frozen=True)
class Gpu:
    """One CUDA device: its name, compute capability and memory."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int


@dataclass(frozen=True)
class GpuReport:
    """The GPUs found, the driver's and CUDA's versions, and, where there is no usable GPU, why."""

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    problem: str | None = None


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
    version = f"{cuda // 1000}.{cuda % 1000 // 10}" if status == 0 else None
    status, count = cudart.cudaGetDeviceCount()
    if status != 0 or not count:
        text = cudart.cudaGetErrorString(status)[1].decode() if status != 0 else "no CUDA device"
        return GpuReport(driver=_driver_version(), cuda=version, problem=text)
    gpus = []
    for index in range(count):
        status, properties = cudart.cudaGetDeviceProperties(index)
        if status != 0:
            return GpuReport(driver=_driver_version(), cuda=version, problem=f"GPU {index}: {status.name}")
        capability = (properties.major, properties.minor)
        gpus.append(Gpu(properties.name.decode().rstrip("\0"), capability, properties.totalGlobalMem))
    return GpuReport(tuple(gpus), _driver_version(), version)


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
