"""How kernels are handed to CUDA: what the driver is called with, and what its refusals say."""

import ctypes
import os
import struct
import threading
from typing import Any

import numpy as np
import pytest
import torch
from cuda.bindings import driver
from cuda.bindings import runtime as cudart

from chan_rt.runtime.backends import device as device_module
from chan_rt.runtime.backends.device import CudaDevice
from chan_rt.runtime.errors import BackendError, GpuMemoryError


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...]]]:
    """What the driver was called with; it agrees to everything."""
    made: list[tuple[str, tuple[Any, ...]]] = []

    def accept(name: str, *results: object) -> None:
        def call(*arguments: Any) -> tuple[Any, ...]:
            made.append((name, arguments))
            return driver.CUresult.CUDA_SUCCESS, *results

        monkeypatch.setattr(driver, name, call)

    accept("cuModuleLoadData", "module")
    accept("cuModuleGetFunction", "function")
    for name in ("cuFuncSetAttribute", "cuLaunchKernel", "cuModuleUnload"):
        accept(name)
    return made


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> CudaDevice:
    """A device whose runtime says yes: there may be no GPU here."""
    monkeypatch.setattr(CudaDevice, "_call", lambda self, name, *arguments: None)
    return CudaDevice()


class Elsewhere:
    """A tensor on the second GPU, which must not be asked for its memory."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 1


@pytest.mark.parametrize(
    ("tensor", "where"),
    [(np.zeros(3), "host memory"), (torch.zeros(3), "host memory"), (Elsewhere(), "device 1")],
    ids=["numpy", "torch", "another GPU"],
)
def test_a_tensor_that_lies_elsewhere_is_refused(device: CudaDevice, tensor: Any, where: str) -> None:
    with pytest.raises(BackendError, match=f"a DLPack tensor must lie on CUDA device 0, got {where}"):
        device.view(tensor, 1)


def test_memory_is_copied_within_the_device(device: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(CudaDevice, "_call", lambda self, *of: asked.append(of))
    device.copy(512, 256, 100, 7)
    assert asked == [("cudaMemcpyAsync", 512, 256, 100, cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice, 7)]


def test_kernels_are_loaded_launched_and_unloaded(device: CudaDevice, calls: list) -> None:
    kernel = device.load_kernel(b"\x7fELF", "scan", 40960, 2)
    device.launch_kernel(kernel, 7, 128, [1 << 63], [5, 0.5], 99)
    device.launch_kernel(kernel, 7, 128, [1 << 40], [-3, 0.1], 99)
    device.unload_kernel(kernel)
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    arguments = calls[4][1][9]
    pointers = (ctypes.c_uint64 * 5).from_address(arguments)
    types = ctypes.c_uint64, ctypes.c_int32, ctypes.c_double, ctypes.c_uint64, ctypes.c_uint64
    found = [kind.from_address(pointer).value for kind, pointer in zip(types, pointers, strict=True)]
    assert found == [1 << 40, -3, 0.1, 0, 0]
    launch = ("cuLaunchKernel", ("function", 7, 1, 1, 128, 1, 1, 40960, 99, arguments, 0))
    assert calls == [
        ("cuModuleLoadData", (b"\x7fELF",)),
        ("cuModuleGetFunction", ("module", b"scan")),
        ("cuFuncSetAttribute", ("function", attribute, 40960)),
        launch,
        launch,
        ("cuModuleUnload", ("module",)),
    ]


def test_a_refusal_carries_cudas_words(device: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = driver.CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU
    monkeypatch.setattr(driver, "cuModuleLoadData", lambda image: (refused, None))
    words = b"no kernel image is available for execution on the device"
    monkeypatch.setattr(driver, "cuGetErrorString", lambda status: (driver.CUresult.CUDA_SUCCESS, words))
    with pytest.raises(BackendError, match=f"CUDA: cuModuleLoadData failed: {words.decode()} .*NO_BINARY_FOR_GPU"):
        device.load_kernel(b"", "scan", 0, 0)


def test_an_argument_that_does_not_fit_its_type_is_refused(device: CudaDevice, calls: list) -> None:
    kernel = device.load_kernel(b"", "scan", 0, 2)
    device.launch_kernel(kernel, 1, 32, [0], [1, 2.0], 0)
    before = len(calls)
    for address, whole in ((-1, 1), (1 << 64, 1), (0, 1 << 31), (0, -(1 << 31) - 1), (0, 1.0)):
        with pytest.raises(struct.error):
            device.launch_kernel(kernel, 1, 32, [address], [whole, 2.0], 0)
    for addresses, numbers in (([0], [1]), ([], [1, 2.0]), ([0], [1, 2.0, 3.0])):
        with pytest.raises(struct.error):
            device.launch_kernel(kernel, 1, 32, addresses, numbers, 0)
    assert len(calls) == before


def test_a_launch_that_was_interrupted_can_be_made_again(
    device: CudaDevice, calls: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = device.load_kernel(b"", "scan", 0, 2)
    for name in ("zeros", "arange"):  # the memory that arguments are packed into, and pointers to it

        def interrupt(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(device_module.np, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                device.launch_kernel(kernel, 1, 32, [0], [1, 2.0], 0)
    device.launch_kernel(kernel, 1, 32, [0], [1, 2.0], 0)
    assert calls[-1][0] == "cuLaunchKernel"


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...]]]:
    """What CUDA's runtime was called with; it agrees to everything, and is out of memory past 1 MiB."""
    made: list[tuple[str, tuple[Any, ...]]] = []

    def accept(name: str, answer: Any) -> None:
        def call(*arguments: Any) -> tuple[Any, ...]:
            made.append((name, arguments))
            return answer(*arguments)

        monkeypatch.setattr(cudart, name, call)

    success = cudart.cudaError_t.cudaSuccess
    full = cudart.cudaError_t.cudaErrorMemoryAllocation
    accept("cudaSetDevice", lambda index: (success,))
    accept("cudaThreadExchangeStreamCaptureMode", lambda mode: (success, mode))
    accept("cudaMalloc", lambda size: (success, 4096) if size <= 1 << 20 else (full, 0))
    accept("cudaFree", lambda address: (success,))
    accept("cudaMemGetInfo", lambda: (success, 1 << 20, 1 << 30))
    monkeypatch.setattr(CudaDevice, "_threads", threading.local())
    return made


def test_memory_that_is_short_is_an_error_of_its_own(runtime: list) -> None:
    device = CudaDevice()
    with pytest.raises(GpuMemoryError, match="cudaMalloc failed: out of memory"):
        device.malloc(1 << 21)
    assert device.free_memory() == 1 << 20


def test_each_thread_keeps_apart_from_what_others_record(runtime: list) -> None:
    devices = [CudaDevice(), CudaDevice(1)]
    thread = threading.Thread(target=lambda: [device.activate() for device in devices * 2])
    thread.start()
    thread.join()
    modes = [arguments for name, arguments in runtime if name == "cudaThreadExchangeStreamCaptureMode"]
    assert modes == [(cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal,)] * 2
    assert [arguments for name, arguments in runtime if name == "cudaSetDevice"] == [(0,), (1,)] + [(0,), (1,)] * 2


def test_a_forked_process_is_refused_and_frees_nothing(runtime: list, monkeypatch: pytest.MonkeyPatch) -> None:
    device = CudaDevice()
    arena_like = device.malloc(64)
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    with pytest.raises(BackendError, match="opened before this process was forked cannot be used in it"):
        device.activate()
    device.free(arena_like)
    monkeypatch.undo()
    assert [name for name, _ in runtime if name == "cudaFree"] == []
