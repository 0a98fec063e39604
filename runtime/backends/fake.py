"""A backend made of a Python function and a device made of host memory, for tests of whatever uses them."""

from __future__ import annotations

import ctypes
import itertools
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..contract import GraphSpec, Range
from ..errors import BackendError, GpuMemoryError
from .base import Array, Backend, Feeds, check_feeds


class FakeBackend(Backend):
    """Answers `run` with a function of the feeds, after the checks a real backend makes.

    Args:
        spec: the graph it stands for.
        compute: feeds -> outputs by name.
        ranges: as of an engine built for fewer sizes; None for the spec's.

    Attributes:
        calls: the shapes of every call's feeds, in order.
        closed: whether `close` was called.
    """

    def __init__(
        self,
        spec: GraphSpec,
        compute: Callable[[Feeds], dict[str, Array]],
        ranges: Mapping[str, Range] | None = None,
    ) -> None:
        self.name = "fake"
        self.spec = spec
        self.calls: list[dict[str, tuple[int, ...]]] = []
        self.closed = False
        self._compute = compute
        self._ranges = spec.ranges if ranges is None else ranges

    @property
    def ranges(self) -> Mapping[str, Range]:
        """The ranges it was given."""
        return self._ranges

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """See `Backend.run`."""
        check_feeds(self.spec, self.ranges, feeds)
        self.calls.append({name: array.shape for name, array in feeds.items()})
        return self._compute(feeds)

    def close(self) -> None:
        """Remember it."""
        self.closed = True


class FakeDevice:
    """`Device` without graphs, on the host: addresses are real, kernels Python functions, streams a count.

    What is queued on a stream is done when somebody waits for that stream, so that memory of the host that is written
    again before then, or read before then, shows. Any number of threads may use one.

    Args:
        kernels: what a kernel's name runs: a function of this device, the number of blocks and the arguments.
        capacity: bytes that may be allocated at once.

    Attributes:
        memory: what is allocated, by address; a read or write outside it fails.
        launched: names of the kernels launched, in order.
        copied_in: bytes copied to the device so far.
    """

    def __init__(self, kernels: Mapping[str, Callable[..., None]], capacity: int = 1 << 30) -> None:
        self._kernels = kernels
        self._capacity = capacity
        self.memory: dict[int, NDArray[np.uint8]] = {}
        self.hosts: dict[int, NDArray[np.uint8]] = {}
        self.streams = 0
        self.loaded = 0
        self.launched: list[str] = []
        self.copied_in = 0
        self._numbers = itertools.count(1)  # of streams
        self._queued: dict[int, list[Callable[[], None]]] = {}
        self._turn = threading.RLock()

    def activate(self) -> None:
        """Nothing to choose between."""

    def malloc(self, size: int) -> int:
        """See `Device.malloc`; memory is filled, so that what was never written shows."""
        if sum(map(len, list(self.memory.values()))) + size > self._capacity:
            raise GpuMemoryError("CUDA: cudaMalloc failed: out of memory (cudaErrorMemoryAllocation)")
        memory = np.full(size + 255, 0xAB, np.uint8)
        memory = memory[-memory.ctypes.data % 256 :][:size]  # real addresses are aligned, kernels rely on it
        self.memory[memory.ctypes.data] = memory
        return memory.ctypes.data

    def free_memory(self) -> int:
        """See `Device.free_memory`."""
        return self._capacity - sum(map(len, list(self.memory.values())))

    def free(self, address: int) -> None:
        """See `Device.free`; it waits."""
        self.synchronize(0)
        del self.memory[address]

    def malloc_host(self, size: int) -> Array:
        """See `Device.malloc_host`."""
        memory = np.full(size, 0xCD, np.uint8)
        self.hosts[memory.ctypes.data] = memory
        return memory

    def free_host(self, memory: Array) -> None:
        """See `Device.free_host`; it waits."""
        self.synchronize(0)
        del self.hosts[memory.ctypes.data]

    def create_stream(self) -> int:
        """See `Device.create_stream`."""
        self.streams += 1
        return next(self._numbers)

    def destroy_stream(self, stream: int) -> None:
        """See `Device.destroy_stream`."""
        self.streams -= 1

    def synchronize(self, stream: int) -> None:
        """Do all that was queued on a stream; 0 stands for every one."""
        assert self.streams or not stream, "the stream was destroyed"
        with self._turn:
            for each in [stream] if stream else list(self._queued):
                for do in self._queued.pop(each, []):
                    do()

    def copy_in(self, address: int, memory: Array, stream: int) -> None:
        """See `Device.copy_in`."""
        self.copied_in += memory.nbytes

        def copy() -> None:
            self.array(address, np.uint8)[: memory.nbytes] = memory.reshape(-1).view(np.uint8)

        self._queue(stream, copy)

    def copy_out(self, memory: Array, address: int, stream: int) -> None:
        """See `Device.copy_out`."""

        def copy() -> None:
            memory[...] = self.array(address, np.uint8)[: memory.nbytes]

        self._queue(stream, copy)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """See `Device.copy`; the addresses may be of memory that this device did not allocate."""

        def copy() -> None:
            ctypes.memmove(target, source, size)

        self._queue(stream, copy)

    def load_kernel(self, image: bytes, name: str, shared: int, hidden: int) -> Any:
        """The Python function of that name."""
        self.loaded += 1
        return name

    def launch_kernel(
        self,
        kernel: Any,
        blocks: int,
        threads: int,
        addresses: Sequence[int],
        numbers: Sequence[int | float],
        stream: int,
    ) -> None:
        """Queue the function."""
        assert all(isinstance(each, float) or -(1 << 31) <= each < 1 << 31 for each in (blocks, *numbers))
        self.launched.append(kernel)
        self._queue(stream, lambda: self._kernels[kernel](self, blocks, *addresses, *numbers))

    def unload_kernel(self, kernel: Any) -> None:
        """See `Device.unload_kernel`."""
        self.loaded -= 1

    def view(self, tensor: Any, stream: int) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
        """See `Device.view`: of a tensor in memory that this device allocated."""
        array = np.from_dlpack(tensor)
        address = array.ctypes.data
        if not any(base <= address < base + len(memory) for base, memory in list(self.memory.items())):
            raise BackendError("a DLPack tensor must lie on CUDA device 0, got host memory")
        if not array.flags.c_contiguous:
            raise BackendError(f"a DLPack tensor must be dense in row order, got strides {array.strides}")
        return address, array.shape, array.dtype

    def export(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, Any]:
        """See `Device.export`: a numpy array, which owns its memory here."""
        address = self.malloc(int(np.prod(shape)) * dtype.itemsize)
        tensor = self.array(address, dtype).reshape(shape)
        weakref.finalize(tensor, self.free, address)
        return address, tensor

    def _queue(self, stream: int, do: Callable[[], None]) -> None:
        with self._turn:
            self._queued.setdefault(stream, []).append(do)

    def array(self, address: int, dtype: Any) -> Array:
        """What lies from an address to the end of its allocation, as a view."""
        for base, memory in list(self.memory.items()):
            if base <= address < base + len(memory):
                rest = memory[address - base :]
                return rest[: len(rest) // np.dtype(dtype).itemsize * np.dtype(dtype).itemsize].view(dtype)
        raise BackendError(f"CUDA: an illegal memory access was encountered at {address:#x}")

    @property
    def under_way(self) -> bool:
        """Whether something was queued that nobody waited for."""
        return bool(self._queued)

    @property
    def empty(self) -> bool:
        """Whether everything was given back."""
        return not (self.memory or self.hosts or self.streams or self.loaded)
