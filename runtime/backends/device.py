"""The little of CUDA that running an engine needs, behind a protocol, so that all above it is tested without a GPU.

Memory is handed around as addresses. `CudaDevice` is cuda-python; tests use a device made of numpy arrays.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ..errors import BackendError, GpuMemoryError
from ..extras import missing
from ..gpu import examine_gpu
from .base import Array
from .rtx_gpus import why_not_served


class Device(Protocol):
    """One GPU. Streams, graphs and device memory are integers whose meaning is the device's own."""

    def activate(self) -> None:
        """Make this the calling thread's device.

        BackendError in a process that was forked from the one that made it.
        """

    def malloc(self, size: int) -> int:
        """Address of `size` fresh bytes of device memory; GpuMemoryError where there is no room."""

    def free_memory(self) -> int:
        """Bytes of device memory that nobody has allocated."""

    def free(self, address: int) -> None:
        """Give memory of `malloc` back, on any thread, whose device stays the same; nothing in a forked process."""

    def malloc_host(self, size: int) -> Array:
        """`size` bytes of pinned host memory, as uint8."""

    def free_host(self, memory: Array) -> None:
        """Give memory of `malloc_host` back."""

    def create_stream(self) -> int:
        """A stream of its own, not ordered after the default one."""

    def destroy_stream(self, stream: int) -> None:
        """Give a stream back."""

    def synchronize(self, stream: int) -> None:
        """Wait for all work on a stream; errors of that work are raised here."""

    def copy_in(self, address: int, memory: Array, stream: int) -> None:
        """Queue a copy of all of pinned `memory` to the device."""

    def copy_out(self, memory: Array, address: int, stream: int) -> None:
        """Queue a copy from the device that fills pinned `memory`."""

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Queue a copy of `size` bytes within the device's memory."""

    def begin_capture(self, stream: int) -> None:
        """Record what this thread queues on a stream from now on, in place of running it."""

    def end_capture(self, stream: int) -> Any:
        """Stop recording; the graph that was recorded, ready to launch. BackendError where it cannot be captured."""

    def launch(self, graph: Any, stream: int) -> None:
        """Queue a recorded graph."""

    def destroy_graph(self, graph: Any) -> None:
        """Give a graph back."""

    def load_kernel(self, image: bytes, name: str, shared: int, hidden: int) -> Any:
        """The function `name` of a compiled module, to be launched with `shared` bytes of shared memory a block.

        hidden: null pointers that follow its arguments.
        """

    def launch_kernel(
        self,
        kernel: Any,
        blocks: int,
        threads: int,
        addresses: Sequence[int],
        numbers: Sequence[int | float],
        stream: int,
    ) -> None:
        """Queue a kernel on `blocks` blocks of `threads` threads, of one thread of the caller at a time.

        Its arguments are the addresses, then the numbers: whole ones are int32, the others float64. Each launch of a
        kernel has numbers of the same types.
        """

    def unload_kernel(self, kernel: Any) -> None:
        """Give a kernel of `load_kernel` back."""

    def view(self, tensor: Any, stream: int) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
        """Address, shape and dtype of a dense DLPack tensor on this device, ready for use on `stream`.

        The tensor's library lets `stream` wait for what it has queued that writes or reads the tensor.
        """

    def export(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, Any]:
        """Fresh device memory: its address, and a DLPack tensor of that shape which owns it."""


_HOST, _CUDA = 1, 2  # DLDeviceType of dlpack.h


class CudaDevice:
    """A CUDA device through cuda-python; every error becomes a BackendError with CUDA's own message.

    CUDA does not survive a fork: a child process is refused, and what it gives back is left to its parent.

    Args:
        index: which device, as CUDA counts them.
    """

    _threads = threading.local()

    def __init__(self, index: int = 0) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            gpu = examine_gpu()  # TensorRT-RTX, which is smaller, does not serve every one
            extra = gpu.extra_for("rtx" if why_not_served(gpu) is None else "tensorrt")
            raise missing("cuda.bindings", "computing on a GPU", extra, error) from error
        self._cuda: Any = runtime
        self.index = index
        self._process = os.getpid()
        self.activate()

    def activate(self) -> None:
        """See `Device.activate`."""
        if self._process != os.getpid():
            raise BackendError(
                "a GPU that was opened before this process was forked cannot be used in it: open it in the new "
                "process, or start processes by multiprocessing's method spawn"
            )
        self._call("cudaSetDevice", self.index)
        if not getattr(self._threads, "apart", False):
            # onnxruntime records in CUDA's global mode, in which an allocation by any thread of the process voids the
            # recording, unless that thread keeps itself apart.
            mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            self._call("cudaThreadExchangeStreamCaptureMode", mode)
            self._threads.apart = True

    def malloc(self, size: int) -> int:
        """See `Device.malloc`."""
        return int(self._call("cudaMalloc", size))

    def free_memory(self) -> int:
        """See `Device.free_memory`."""
        return int(self._results("cudaMemGetInfo")[0])

    def free(self, address: int) -> None:
        """See `Device.free`."""
        if self._process != os.getpid():
            return
        current = int(self._call("cudaGetDevice"))  # of this thread, which may be in the middle of another GPU's work
        try:
            if current != self.index:
                self._call("cudaSetDevice", self.index)
            self._call("cudaFree", address)
        finally:
            if current != self.index:
                self._call("cudaSetDevice", current)

    def malloc_host(self, size: int) -> Array:
        """See `Device.malloc_host`."""
        return np.asarray(_Pinned(int(self._call("cudaMallocHost", size)), size))

    def free_host(self, memory: Array) -> None:
        """See `Device.free_host`."""
        self._give_back("cudaFreeHost", memory.ctypes.data)

    def create_stream(self) -> int:
        """See `Device.create_stream`."""
        return int(self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))

    def destroy_stream(self, stream: int) -> None:
        """See `Device.destroy_stream`."""
        self._give_back("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        """See `Device.synchronize`."""
        self._call("cudaStreamSynchronize", stream)

    def copy_in(self, address: int, memory: Array, stream: int) -> None:
        """See `Device.copy_in`."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, memory.ctypes.data, memory.nbytes, kind, stream)

    def copy_out(self, memory: Array, address: int, stream: int) -> None:
        """See `Device.copy_out`."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", memory.ctypes.data, address, memory.nbytes, kind, stream)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """See `Device.copy`."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def begin_capture(self, stream: int) -> None:
        """See `Device.begin_capture`; other threads may go on allocating meanwhile."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> Any:
        """See `Device.end_capture`."""
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: int) -> None:
        """See `Device.launch`."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """See `Device.destroy_graph`."""
        self._give_back("cudaGraphExecDestroy", graph)

    def load_kernel(self, image: bytes, name: str, shared: int, hidden: int) -> Any:
        """See `Device.load_kernel`."""
        from cuda.bindings import driver

        self._call("cudaFree", 0)  # the driver's calls want the context that the runtime makes at its first use
        module = self._driver("cuModuleLoadData", image)
        function = self._driver("cuModuleGetFunction", module, name.encode())
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._driver("cuFuncSetAttribute", function, attribute, shared)
        return _Kernel(module, function, shared, hidden)

    def launch_kernel(
        self,
        kernel: Any,
        blocks: int,
        threads: int,
        addresses: Sequence[int],
        numbers: Sequence[int | float],
        stream: int,
    ) -> None:
        """See `Device.launch_kernel`."""
        arguments = kernel.pack(addresses, numbers)
        self._driver(
            "cuLaunchKernel", kernel.function, blocks, 1, 1, threads, 1, 1, kernel.shared, stream, arguments, 0
        )  # fmt: skip

    def unload_kernel(self, kernel: Any) -> None:
        """See `Device.unload_kernel`."""
        if self._process == os.getpid():
            self._driver("cuModuleUnload", kernel.module)

    def view(self, tensor: Any, stream: int) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
        """See `Device.view`."""
        from cuda.core.utils import StridedMemoryView

        # Asked first: libraries refuse a stream for host memory in words of their own, or take one of another GPU.
        if (place := getattr(tensor, "__dlpack_device__", None)) is not None:
            kind, index = place()
            if kind == _HOST or (kind == _CUDA and index != self.index):
                where = "host memory" if kind == _HOST else f"device {index}"
                raise BackendError(f"a DLPack tensor must lie on CUDA device {self.index}, got {where}")
        try:
            found = StridedMemoryView.from_any_interface(tensor, stream_ptr=stream)
        except Exception as error:  # every library refuses in its own way
            raise BackendError(f"a {type(tensor).__name__} cannot be read as a DLPack tensor: {error}") from error
        if not found.is_device_accessible or found.device_id != self.index:
            raise BackendError(f"a DLPack tensor must lie on CUDA device {self.index}, got device {found.device_id}")
        shape = tuple(found.shape)
        if found.strides is not None and not is_dense(shape, tuple(found.strides)):
            raise BackendError(f"a DLPack tensor must be dense in row order, got strides {tuple(found.strides)}")
        return int(found.ptr), shape, np.dtype(found.dtype)

    def export(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, Any]:
        """See `Device.export`."""
        from cuda.core import Buffer
        from cuda.core.utils import StridedMemoryView

        size = max(1, int(np.prod(shape)) * dtype.itemsize)
        owner = _Owned(self, self.malloc(size))
        buffer = Buffer.from_handle(owner.address, size, owner=owner)
        return owner.address, StridedMemoryView.from_buffer(buffer, shape, dtype=dtype)

    def _call(self, name: str, *arguments: Any) -> Any:
        results = self._results(name, *arguments)
        return results[0] if results else None

    def _results(self, name: str, *arguments: Any) -> list[Any]:
        status, *rest = getattr(self._cuda, name)(*arguments)
        results: list[Any] = rest
        if status != self._cuda.cudaError_t.cudaSuccess:
            _, text = self._cuda.cudaGetErrorString(status)
            raise _error(f"CUDA: {name} failed: {text.decode()} ({status.name})", status.name)
        return results

    def _give_back(self, name: str, what: Any) -> None:
        if self._process == os.getpid():
            self._call(name, what)

    def _driver(self, name: str, *arguments: Any) -> Any:
        from cuda.bindings import driver

        status, *results = getattr(driver, name)(*arguments)
        if status != driver.CUresult.CUDA_SUCCESS:
            _, text = driver.cuGetErrorString(status)
            message = f"CUDA: {name} failed: {text.decode() if text else 'unknown error'} ({status.name})"
            raise _error(message, status.name)
        return results[0] if results else None


class _Kernel:
    """A function of a loaded module, what it is launched with, and the memory that its arguments are packed into."""

    def __init__(self, module: Any, function: Any, shared: int, hidden: int) -> None:
        self.module, self.function, self.shared = module, function, shared
        self._hidden = hidden
        self._layout: struct.Struct | None = None

    def pack(self, addresses: Sequence[int], numbers: Sequence[int | float]) -> int:
        """Address of pointers to each argument, valid until the next call.

        struct.error if an argument does not fit its type, or is not of the type that it had at the first call.
        """
        layout = self._layout
        if layout is None:
            kinds = ["Q" * len(addresses), *("d" if isinstance(each, float) else "i4x" for each in numbers)]
            layout = struct.Struct("=" + "".join(kinds) + f"{8 * self._hidden}x")
            values = np.zeros(layout.size, np.uint8)
            self._values = values.data
            self._pointers = values.ctypes.data + np.arange(0, layout.size, 8, dtype=np.uint64)
            self._address = self._pointers.ctypes.data
            self._layout = layout  # last: an interrupt before leaves nothing half made
        layout.pack_into(self._values, 0, *addresses, *numbers)
        return self._address


_NO_MEMORY = ("cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY")


def _error(message: str, status: str) -> BackendError:
    return GpuMemoryError(message) if status in _NO_MEMORY else BackendError(message)


class _Pinned:
    """Lets numpy see memory that CUDA allocated."""

    def __init__(self, address: int, size: int) -> None:
        self.__array_interface__ = {"data": (address, False), "shape": (size,), "typestr": "|u1", "version": 3}


class _Owned:
    """Frees device memory once the last DLPack consumer let go of it."""

    def __init__(self, device: CudaDevice, address: int) -> None:
        self.device = device
        self.address = address

    def __del__(self) -> None:
        self.device.free(self.address)


def is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether strides, in elements, are those of a dense array in row order; those of axes of size 1 mean nothing."""
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != step:
            return False
        step *= size
    return True
