"""What a GPU can do at best, measured in this run, and how long its kernels take, by CUDA events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..runtime.backends.device import CudaDevice

_COPIED = 1 << 30  # bytes: far more than a level-2 cache holds
_READ = 2 << 30
_FLUSHED = 256 << 20  # bytes: several times the largest level-2 cache


class TimedDevice(CudaDevice):
    """A CUDA device that times kernels launched through it, with events that were made beforehand.

    Args:
        index: as of `CudaDevice`.

    Attributes:
        timing: whether launches are timed now.
    """

    def __init__(self, index: int = 0) -> None:
        super().__init__(index)
        self.timing = False
        self._names: dict[int, str] = {}
        self._events: list[Any] = []
        self._recorded: list[tuple[str, Any, Any]] = []
        self._flushed = 0

    def load_kernel(self, image: bytes, name: str, shared: int, hidden: int) -> Any:
        """See `Device.load_kernel`."""
        kernel = super().load_kernel(image, name, shared, hidden)
        self._names[id(kernel)] = name
        return kernel

    def prepare(self, launches: int) -> None:
        """Make the events of as many launches."""
        self._events += [self._call("cudaEventCreate") for _ in range(2 * launches - len(self._events))]

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
        if not self.timing:
            super().launch_kernel(kernel, blocks, threads, addresses, numbers, stream)
            return
        begin, end = self._events.pop(), self._events.pop()
        self._call("cudaEventRecord", begin, stream)
        super().launch_kernel(kernel, blocks, threads, addresses, numbers, stream)
        self._call("cudaEventRecord", end, stream)
        self._recorded.append((self._names[id(kernel)], begin, end))

    def milliseconds(self) -> list[tuple[str, float]]:
        """Kernel and time of every timed launch since this was last asked."""
        times = []
        for name, begin, end in self._recorded:
            self._call("cudaEventSynchronize", end)
            times.append((name, float(self._call("cudaEventElapsedTime", begin, end))))
            self._events += [begin, end]
        self._recorded.clear()
        return times

    def flush(self) -> None:
        """Overwrite the level-2 cache, so that what a search reads comes from memory."""
        if not self._flushed:
            self._flushed = self.malloc(_FLUSHED)
        self._call("cudaMemsetAsync", self._flushed, 0, _FLUSHED, 0)
        self._call("cudaDeviceSynchronize")

    def copy_bandwidth(self) -> float:
        """Bytes a second that a copy within the device's memory reads and writes together: the best of twenty."""
        stream, source, target = self.create_stream(), self.malloc(_COPIED), self.malloc(_COPIED)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        try:
            best = best_time(
                self, stream, lambda: self._call("cudaMemcpyAsync", target, source, _COPIED, kind, stream), 20
            )
        finally:
            for address in (source, target):
                self.free(address)
            self.destroy_stream(stream)
        return 2 * _COPIED / best

    def elapsed(self, stream: int, work: Callable[[], object]) -> float:
        """Seconds between two events around what `work` queues on a stream."""
        begin, end = self._call("cudaEventCreate"), self._call("cudaEventCreate")
        self._call("cudaEventRecord", begin, stream)
        work()
        self._call("cudaEventRecord", end, stream)
        self._call("cudaEventSynchronize", end)
        seconds = float(self._call("cudaEventElapsedTime", begin, end)) / 1e3
        for event in (begin, end):
            self._call("cudaEventDestroy", event)
        return seconds


def best_time(device: TimedDevice, stream: int, work: Callable[[], object], runs: int) -> float:
    """Seconds of the fastest of some runs after one that does not count."""
    device.elapsed(stream, work)
    return min(device.elapsed(stream, work) for _ in range(runs))


def tensor_core_rates() -> dict[str, float]:
    """Operations a second of PyTorch's matrix product at 8192^3: float16, and int8 with int32 sums; best of ten."""
    import torch

    size = 8192
    half = torch.randn(size, size, device="cuda", dtype=torch.float16)
    whole = torch.randint(-127, 128, (size, size), device="cuda", dtype=torch.int8)
    products: dict[str, Callable[[], object]] = {
        "float16": lambda: half @ half,
        "int8": lambda: torch._int_mm(whole, whole.T),
    }
    rates = {}
    event: Any = torch.cuda.Event  # its methods have no types
    for name, product in products.items():
        times = []
        for _ in range(12):
            begin, end = event(enable_timing=True), event(enable_timing=True)
            begin.record()
            product()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        rates[name] = 2 * size**3 / min(times[2:])
    return rates


def read_bandwidth() -> float:
    """Bytes a second that PyTorch's inner product of a vector with itself reads; it writes nothing. The best of 20."""
    import torch

    data = torch.ones(_READ // 4, device="cuda")
    event: Any = torch.cuda.Event
    times = []
    for _ in range(20):
        begin, end = event(enable_timing=True), event(enable_timing=True)
        begin.record()
        torch.dot(data, data)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return float(_READ / min(times))
