"""NVIDIA's driver made of Python functions that are called through C, as ctypes calls the real one."""

from __future__ import annotations

import os
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_char, c_char_p, c_int, c_size_t, c_uint, memmove
from types import SimpleNamespace
from typing import Any

from chan_rt.runtime.gpu import Gpu

NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
UNKNOWN = 999
_TEXTS = {NO_DEVICE: b"no CUDA-capable device is detected", UNKNOWN: None}
_INT = POINTER(c_int)


def visible(gpus: list[Gpu]) -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, in its order; the first number that is none ends the list."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return gpus
    left: list[Gpu] = []
    for text in wanted.split(","):
        if not text.strip().isdigit() or int(text) >= len(gpus):
            break
        left.append(gpus[int(text)])
    return left


class FakeDriver:
    """libcuda and NVML of a machine.

    Args:
        version: of the driver; None where NVML is hidden.
        serves: the newest CUDA that it serves, as CUDA counts: 12040 for 12.4.
        gpus: all that are built in.
        fails: the function of libcuda that fails, with a status that has no text.
    """

    def __init__(self, version: str | None, serves: int, gpus: list[Gpu], fails: str | None = None) -> None:
        self.version, self.serves, self.gpus, self.fails = version, serves, gpus, fails
        self._shown: list[Gpu] | None = None  # the variable is read once, by cuInit

    def load(self, name: str) -> Any:
        """Stands for `gpu._load`."""
        if name == "libcuda.so.1":
            return self._cuda()
        if name == "libnvidia-ml.so.1" and self.version is not None:
            return self._nvml(self.version.encode())
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    def _cuda(self) -> Any:
        def init(flags: int) -> int:
            if self._shown is None:
                self._shown = visible(self.gpus)
            return 0 if self._shown else NO_DEVICE

        def name(text: Any, size: int, device: int) -> int:
            return _fill(text, size, self._of(device).name.encode())

        def attribute(value: Any, number: int, device: int) -> int:
            return _set(value, self._of(device).capability[{75: 0, 76: 1}[number]])

        def bus(text: Any, size: int, device: int) -> int:
            place = self._of(device).bus
            return UNKNOWN if place is None else _fill(text, size, b"%04x:%02x:%02x.%x" % place)

        def describe(status: int, text: Any) -> int:
            text[0] = _TEXTS[status]
            return 0

        functions: dict[str, tuple[tuple[Any, ...], Callable[..., int]]] = {
            "cuDriverGetVersion": ((_INT,), lambda value: _set(value, self.serves)),
            "cuInit": ((c_uint,), init),
            "cuDeviceGetCount": ((_INT,), lambda value: _set(value, len(self._shown or ()))),
            "cuDeviceGet": ((_INT, c_int), lambda value, index: _set(value, 40 + index)),
            "cuDeviceGetName": ((POINTER(c_char), c_int, c_int), name),
            "cuDeviceGetAttribute": ((_INT, c_int, c_int), attribute),
            "cuDeviceTotalMem_v2": (
                (POINTER(c_size_t), c_int),
                lambda value, device: _set(value, self._of(device).memory_bytes),
            ),
            "cuDeviceGetPCIBusId": ((POINTER(c_char), c_int, c_int), bus),
            "cuGetErrorString": ((c_int, POINTER(c_char_p)), describe),
        }
        if self.fails is not None:
            functions[self.fails] = (functions[self.fails][0], lambda *arguments: UNKNOWN)
        return SimpleNamespace(
            **{key: CFUNCTYPE(c_int, *types)(function) for key, (types, function) in functions.items()}
        )

    def _of(self, device: int) -> Gpu:
        assert self._shown is not None, "cuInit comes first"
        return self._shown[device - 40]

    @staticmethod
    def _nvml(version: bytes) -> Any:
        return SimpleNamespace(
            nvmlInit_v2=CFUNCTYPE(c_int)(lambda: 0),
            nvmlShutdown=CFUNCTYPE(c_int)(lambda: 0),
            nvmlSystemGetDriverVersion=CFUNCTYPE(c_int, POINTER(c_char), c_uint)(
                lambda text, size: _fill(text, size, version)
            ),
        )


def _set(target: Any, value: int) -> int:
    target[0] = value
    return 0


def _fill(text: Any, size: int, value: bytes) -> int:
    assert len(value) < size
    memmove(text, value + b"\0", len(value) + 1)
    return 0
