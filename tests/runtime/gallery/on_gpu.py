"""A real GPU where the tests of kernels have one made of host memory: CHAN_TEST_KERNELS=cuda.

It notes what a `FakeDevice` notes, and its memory can be read.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chan_rt.runtime.backends.device import CudaDevice
from chan_rt.runtime.errors import BackendError, GpuMemoryError
from chan_rt.runtime.gallery.cuda.kernels import KernelRecord, ScanPrecision
from chan_rt.runtime.gpu import examine_gpu


class NamedCode(bytes):
    """A kernel's code, and the name that it has in its record."""

    name: str


class ObservedGpu(CudaDevice):
    """A GPU of whose memory a part may be allocated; fresh memory is filled, so that what was never written shows.

    Args:
        capacity: bytes that may be allocated at once.

    Attributes:
        memory: the addresses of each allocation, by the first.
        hosts: pinned memory, by address.
        launched: names of the kernels launched, in order.
        copied_in: bytes copied to the device so far.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self.memory: dict[int, range] = {}
        self.hosts: dict[int, NDArray[np.uint8]] = {}
        self.launched: list[str] = []
        self.copied_in = 0
        self._streams: set[int] = set()
        self._names: dict[int, str] = {}

    def malloc(self, size: int) -> int:
        if sum(map(len, list(self.memory.values()))) + size > self._capacity:
            raise GpuMemoryError("CUDA: cudaMalloc failed: out of memory (cudaErrorMemoryAllocation)")
        address = super().malloc(size)
        self._call("cudaMemset", address, 0xAB, size)
        self._call("cudaDeviceSynchronize")  # streams are not ordered after the filling
        self.memory[address] = range(address, address + size)
        return address

    def free_memory(self) -> int:
        return self._capacity - sum(map(len, list(self.memory.values())))

    def free(self, address: int) -> None:
        del self.memory[address]  # before another thread may be given this address
        super().free(address)

    def malloc_host(self, size: int) -> NDArray[np.uint8]:
        memory = super().malloc_host(size)
        memory[...] = 0xCD
        self.hosts[memory.ctypes.data] = memory
        return memory

    def free_host(self, memory: NDArray[np.uint8]) -> None:
        del self.hosts[memory.ctypes.data]
        super().free_host(memory)

    def create_stream(self) -> int:
        stream = super().create_stream()
        self._streams.add(stream)
        return stream

    def destroy_stream(self, stream: int) -> None:
        self._streams.remove(stream)
        super().destroy_stream(stream)

    def copy_in(self, address: int, memory: NDArray[np.uint8], stream: int) -> None:
        self.copied_in += memory.nbytes
        super().copy_in(address, memory, stream)

    def load_kernel(self, image: bytes, name: str, shared: int, hidden: int) -> Any:
        kernel = super().load_kernel(image, name, shared, hidden)
        self._names[id(kernel)] = image.name if isinstance(image, NamedCode) else name
        return kernel

    def launch_kernel(
        self,
        kernel: Any,
        blocks: int,
        threads: int,
        addresses: Sequence[int],
        numbers: Sequence[int | float],
        stream: int,
    ) -> None:
        self.launched.append(self._names[id(kernel)])
        super().launch_kernel(kernel, blocks, threads, addresses, numbers, stream)

    def unload_kernel(self, kernel: Any) -> None:
        del self._names[id(kernel)]
        super().unload_kernel(kernel)

    def array(self, address: int, dtype: Any) -> NDArray[Any]:
        """A copy of what lies from an address to the end of its allocation, once all that was queued is done."""
        for allocated in self.memory.values():
            if address in allocated:
                size = np.dtype(dtype).itemsize
                found = np.empty((allocated.stop - address) // size * size, np.uint8)
                self._call("cudaDeviceSynchronize")
                kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
                self._call("cudaMemcpy", found.ctypes.data, address, found.nbytes, kind)
                return found.view(dtype)
        raise BackendError(f"no memory was allocated at {address:#x}")

    @property
    def under_way(self) -> bool:
        """Whether something was queued that is not done yet."""
        ready = self._cuda.cudaError_t.cudaSuccess
        return any(self._cuda.cudaStreamQuery(stream)[0] != ready for stream in self._streams)

    @property
    def empty(self) -> bool:
        """Whether everything was given back."""
        return not (self.memory or self.hosts or self._streams or self._names)


@functools.cache
def compiled_kernels(precision: ScanPrecision, dim: int, pooling: str) -> tuple[KernelRecord, dict[str, bytes]]:
    """Kernels for this machine's first GPU, compiled once."""
    from chan_rt.bench.gpu_kernels import give_kernels

    with tempfile.TemporaryDirectory() as folder:
        record, code = give_kernels(Path(folder), dim, pooling, precision, examine_gpu().gpus[0].capability)
    named = {name: NamedCode(each) for name, each in code.items()}
    for name, each in named.items():
        each.name = name
    return record, named
