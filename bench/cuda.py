"""What a GPU can do at best, measured in this run, and how long its kernels take, by CUDA events."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np

from ..runtime.backends.device import CudaDevice

_COPIED = 1 << 30  # bytes: far more than a level-2 cache holds
_READ = 2 << 30
_FLUSHED = 256 << 20  # bytes: several times the largest level-2 cache
_STATE = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,temperature.gpu,memory.used"


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


def gpu_uuid(index: int = 0) -> tuple[str | None, str]:
    """What nvidia-smi calls a GPU by CUDA's count, whatever CUDA_VISIBLE_DEVICES says, or why it has no name.

    CUDA's own UUID of a MIG instance is that of a `MIG-...` in nvidia-smi's list. Clocks and power are of the whole GPU
    that it is a part of, so that is named.
    """
    from cuda.bindings import runtime

    status, properties = runtime.cudaGetDeviceProperties(index)
    if status != 0:
        return None, "CUDA does not say which GPU it uses"
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None, "nvidia-smi is not installed"
    wanted, whole = str(uuid.UUID(bytes=bytes(properties.uuid.bytes))), None
    for name in re.findall(r"UUID: ([^)]+)", subprocess.run([tool, "-L"], capture_output=True, text=True).stdout):
        whole = name if name.startswith("GPU-") else whole
        if name in (f"GPU-{wanted}", f"MIG-{wanted}"):
            return whole or name, ""
    return None, f"nvidia-smi -L lists no GPU and no MIG instance {wanted}"


class Clocks:
    """Samples a GPU's clocks, power and temperature while a block runs.

    Args:
        gpu: its name, from `gpu_uuid`; None samples nothing.
        every: seconds between samples.

    Attributes:
        samples: what nvidia-smi reported, in order.
    """

    def __init__(self, gpu: str | None, every: float = 0.5) -> None:
        self._gpu, self._every = gpu, every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.samples: list[dict[str, str]] = []

    def __enter__(self) -> Self:
        if self._gpu is not None:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._gpu is not None:
            self._thread.join()

    def summary(self) -> dict[str, list[float]]:
        """Smallest, middle and largest of each number sampled."""
        found = {}
        for name in ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu"):
            values = [number for each in self.samples if (number := _number(each.get(name, ""))) is not None]
            if values:
                found[name] = [min(values), float(np.median(values)), max(values)]
        return found

    def _sample(self) -> None:
        while not self._ended.wait(self._every):
            self.samples.append(gpu_state(self._gpu))


def _number(text: str) -> float | None:
    try:
        return float(text.split()[0])
    except (ValueError, IndexError):
        return None


def gpu_state(gpu: str | None = None) -> dict[str, str]:
    """Clocks, power, temperature and memory in use, as nvidia-smi tells them; empty where it is not installed.

    gpu: its UUID; None for the first.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    command = [tool, f"--query-gpu={_STATE}", "--format=csv,noheader", f"--id={gpu or 0}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        return {"nvidia-smi": done.stderr.strip() or done.stdout.strip()}
    return dict(zip(_STATE.split(","), (value.strip() for value in done.stdout.strip().split(",")), strict=True))
