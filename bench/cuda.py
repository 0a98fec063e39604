"""What a GPU can do at best, measured in this run, and how long its kernels take, by CUDA events."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..runtime.backends.device import CudaDevice

_COPIED = 1 << 30  # bytes: far more than a level-2 cache holds
_STATE = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,temperature.gpu,memory.used"


class TimedDevice(CudaDevice):
    """A CUDA device that times every kernel launched through it.

    Attributes:
        recorded: (kernel, start event, end event) in the order of their launches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[tuple[Any, Any, Any]] = []

    def launch_kernel(
        self, kernel: Any, blocks: int, threads: int, arguments: Sequence[np.generic], stream: int
    ) -> None:
        """See `Device.launch_kernel`."""
        events = self._call("cudaEventCreate"), self._call("cudaEventCreate")
        self._call("cudaEventRecord", events[0], stream)
        super().launch_kernel(kernel, blocks, threads, arguments, stream)
        self._call("cudaEventRecord", events[1], stream)
        self.recorded.append((kernel, *events))

    def milliseconds(self) -> list[tuple[Any, float]]:
        """Kernel and time of every launch since this was last asked."""
        times = []
        for kernel, begin, end in self.recorded:
            self._call("cudaEventSynchronize", end)
            times.append((kernel, float(self._call("cudaEventElapsedTime", begin, end))))
            self._call("cudaEventDestroy", begin)
            self._call("cudaEventDestroy", end)
        self.recorded.clear()
        return times

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


def gpu_state() -> dict[str, str]:
    """Clocks, power, temperature and memory in use, as nvidia-smi tells them; empty where it is not installed."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    command = [tool, f"--query-gpu={_STATE}", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        return {"nvidia-smi": done.stderr.strip() or done.stdout.strip()}
    return dict(zip(_STATE.split(","), (value.strip() for value in done.stdout.strip().split(",")), strict=True))
