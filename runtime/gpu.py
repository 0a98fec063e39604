"""The NVIDIA GPUs of this machine, as the CUDA driver reports them.

The driver's own libraries are asked through ctypes: what to install for a GPU must be known before anything is
installed. They honor `CUDA_VISIBLE_DEVICES` themselves.

https://docs.nvidia.com/cuda/cuda-driver-api/ (cuDeviceGetCount and others)
"""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

from .errors import InputError
from .extras import install_command

CUDA_12, NEWEST_CUDA = 12, 13
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
FIRST_DRIVER = "R580"  # that serves CUDA 13: https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/ (CUDA Driver)


@dataclass(frozen=True)
class Gpu:
    """One CUDA device.

    Attributes:
        name: of the product.
        capability: compute capability.
        memory_bytes: of all of its memory.
        bus: domain, bus, device and function on PCI; a MIG instance has those of its GPU. None where they are unknown.
    """

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    bus: tuple[int, int, int, int] | None = None

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


def device_index(device: str) -> int:
    """The number of the one GPU that a name stands for, as CUDA counts those it shows.

    device: `cuda` for the first GPU, or `cuda:N`.

    Raises:
        InputError: any other name, cpu and several GPUs included.
    """
    numbers = device_indices(device)
    if len(numbers) != 1:
        instead = "" if numbers else "; on the CPU the backend onnxruntime runs them"
        raise InputError(f"device must be one GPU for the graphs of a bundle, cuda or cuda:N, got {device!r}{instead}")
    return numbers[0]


def parse_bus(text: str | None) -> tuple[int, int, int, int] | None:
    """Domain, bus, device and function of a PCI address: `0000:65:00.0`, or `00000000:65:00.0` as NVML writes it."""
    found = re.fullmatch(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])", (text or "").strip().lower())
    if found is None:
        return None
    domain, bus, device, function = (int(part, 16) for part in found.groups())
    return domain, bus, device, function


def architecture(capability: tuple[int, int]) -> str:
    """`sm_90` for (9, 0)."""
    return f"sm_{capability[0]}{capability[1]}"


@dataclass(frozen=True)
class GpuReport:
    """The GPUs found, and why there is none to use.

    Attributes:
        gpus: in CUDA's order, in which `CUDA_VISIBLE_DEVICES` and MIG leave some out; usable only without a problem.
        driver: its version; None also where NVML hides it.
        cuda: the newest CUDA that the driver serves.
        problem: why there is no usable GPU.
        remedy: what would help, where that is known.
        first: the number that CUDA gives to the first of `gpus`; not 0 in a report of another GPU alone (`only`).
    """

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    problem: str | None = None
    remedy: str | None = None
    first: int = 0

    def only(self, index: int) -> GpuReport:
        """The report of one of the GPUs, as if there were no other.

        Raises:
            InputError: CUDA shows GPUs, and none of that number.
        """
        if not self.gpus and index == 0:
            return self
        if index >= len(self.gpus):
            shown = ", ".join(f"cuda:{number} ({gpu.name})" for number, gpu in enumerate(self.gpus))
            raise InputError(f"device cuda:{index} is not there: CUDA shows {shown or f'no GPU ({self.problem})'}")
        return replace(self, gpus=(self.gpus[index],), first=index)

    def extra_for(self, extra: str) -> str:
        """The extra with the same libraries as `extra`, for the CUDA that this driver serves.

        extra: gpu, tensorrt, rtx or rtx-plugin, which are for the newest CUDA.
        """
        return f"{extra.removesuffix(f'-cu{NEWEST_CUDA}')}-cu{CUDA_12}" if self.cuda_major == CUDA_12 else extra

    @property
    def cuda_major(self) -> int | None:
        """13 of CUDA 13.0; None where there is no driver."""
        return None if self.cuda is None else int(self.cuda.partition(".")[0])


def examine_gpu() -> GpuReport:
    """Return the devices that the CUDA driver finds, and why they cannot be used or there are none."""
    try:
        library = _load("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as error:
        return GpuReport(problem=f"the NVIDIA driver's library does not load ({error})")
    number = ctypes.c_int()
    serves = number.value if library.cuDriverGetVersion(ctypes.byref(number)) == 0 else 0
    cuda = f"{serves // 1000}.{serves % 1000 // 10}" if serves else None
    found = GpuReport(driver=_driver_version(), cuda=cuda)
    try:
        found = replace(found, gpus=tuple(_devices(library)))
    except _DriverError as error:
        found = replace(found, problem=str(error))
    if (problem := too_old_for(found, "cuda-python", _cuda_of_bindings())) is not None:
        return replace(found, problem=problem, remedy=remedy_of_driver(found))
    return found


class _DriverError(Exception):
    """What the driver says is wrong."""


def _devices(library: Any) -> list[Gpu]:
    """Every device that the driver shows; _DriverError where there is none, or one cannot be examined."""

    def ask(name: str, *arguments: Any) -> None:
        status = getattr(library, name)(*arguments)
        if status != 0:
            text = ctypes.c_char_p()
            library.cuGetErrorString(status, ctypes.byref(text))
            raise _DriverError(text.value.decode() if text.value else f"{name} failed with status {status}")

    count, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory, bus = ctypes.create_string_buffer(256), ctypes.c_size_t(), ctypes.create_string_buffer(32)
    ask("cuInit", 0)
    ask("cuDeviceGetCount", ctypes.byref(count))
    if not count.value:
        raise _DriverError("no CUDA device")
    gpus = []
    device = ctypes.c_int()
    for index in range(count.value):
        ask("cuDeviceGet", ctypes.byref(device), index)
        ask("cuDeviceGetName", name, len(name), device)
        ask("cuDeviceGetAttribute", ctypes.byref(major), _MAJOR, device)
        ask("cuDeviceGetAttribute", ctypes.byref(minor), _MINOR, device)
        ask("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
        known = library.cuDeviceGetPCIBusId(bus, len(bus), device) == 0
        place = parse_bus(bus.value.decode()) if known else None
        gpus.append(Gpu(name.value.decode(), (major.value, minor.value), memory.value, place))
    return gpus


def too_old_for(found: GpuReport, package: str, cuda: int) -> str | None:
    """The problem of a package for a CUDA, given by its major version, where the driver does not serve it."""
    if found.cuda_major is None or found.cuda_major >= cuda:
        return None
    return f"driver {found.driver or 'of unknown version'} serves CUDA {found.cuda}, {package} here is for CUDA {cuda}"


def remedy_of_driver(found: GpuReport, install: str | None = None) -> str:
    """What helps where libraries are newer than the driver.

    Args:
        found: the driver.
        install: the command that installs what the driver serves; None for that of the extra gpu.
    """
    newer = f"install NVIDIA driver {FIRST_DRIVER} or newer"
    return (
        f"{newer}, or: {install or install_command(found.extra_for('gpu'))}" if found.cuda_major == CUDA_12 else newer
    )


def _load(name: str) -> Any:
    """A library of the driver, wherever the loader finds it; OSError where it does not."""
    return ctypes.CDLL(name)


def _cuda_of_bindings() -> int:
    """The major version of CUDA that cuda-python is for; 0 where it is not installed."""
    try:
        return int(metadata.version("cuda-bindings").partition(".")[0])
    except metadata.PackageNotFoundError:
        return 0


def _driver_version() -> str | None:
    text = ctypes.create_string_buffer(80)
    try:
        nvml = _load("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() != 0:
            return None
        status = nvml.nvmlSystemGetDriverVersion(text, len(text))
        nvml.nvmlShutdown()
    except (OSError, AttributeError):  # NVML is a courtesy: containers may hide it
        return None
    return text.value.decode() if status == 0 else None
