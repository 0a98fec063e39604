"""What a GPU reaches and how long its kernels take, on a CUDA and a PyTorch that only count."""

import itertools
import threading
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from cuda.bindings import runtime as cudart

from chan_rt.bench import cuda


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """CUDA that only counts: events are numbers, the time between two is their distance in milliseconds. Its calls."""
    calls: list[tuple] = []
    recorded: dict[int, float] = {}
    numbers = itertools.count(1)
    success = cudart.cudaError_t.cudaSuccess

    def play(name: str, answer: Callable[..., tuple]) -> None:
        def call(*given: object) -> tuple:
            calls.append((name, *given))
            return (success, *answer(*given))

        monkeypatch.setattr(cudart, name, call)

    def record(event: int, stream: int) -> tuple:
        recorded[event] = float(len(calls))
        return ()

    for name in ("cudaEventCreate", "cudaMalloc", "cudaStreamCreateWithFlags"):
        play(name, lambda *_: (next(numbers),))
    for name in (
        "cudaSetDevice", "cudaThreadExchangeStreamCaptureMode", "cudaEventSynchronize", "cudaEventDestroy", "cudaFree",
        "cudaMemcpyAsync", "cudaMemsetAsync", "cudaDeviceSynchronize", "cudaStreamDestroy",
    ):  # fmt: skip
        play(name, lambda *_: ())
    play("cudaGetDevice", lambda: (0,))
    play("cudaEventRecord", record)
    play("cudaEventElapsedTime", lambda begin, end: (recorded[end] - recorded[begin],))
    monkeypatch.setattr(cuda.CudaDevice, "load_kernel", lambda *given: SimpleNamespace(name=given[2]))
    monkeypatch.setattr(cuda.CudaDevice, "_threads", threading.local())
    monkeypatch.setattr(
        cuda.CudaDevice, "launch_kernel", lambda self, kernel, *_: calls.append(("launch", kernel.name))
    )
    return calls


def test_kernels_are_timed_by_events_that_were_made_before(played: list[tuple]) -> None:
    device = cuda.TimedDevice()
    scan, decide = device.load_kernel(b"", "scan", 0, 0), device.load_kernel(b"", "decide", 0, 0)
    device.launch_kernel(scan, 1, 32, (), (), 5)
    assert device.milliseconds() == [], "it was not asked to time"
    device.prepare(2)
    device.timing = True
    del played[:]
    for kernel in (scan, decide):
        device.launch_kernel(kernel, 1, 32, (), (), 5)
    assert [call[0] for call in played] == ["cudaEventRecord", "launch", "cudaEventRecord"] * 2
    assert {call[2] for call in played if call[0] == "cudaEventRecord"} == {5}, "on the kernel's own stream"
    assert device.milliseconds() == [("scan", 2.0), ("decide", 2.0)]
    assert device.milliseconds() == []
    del played[:]
    device.prepare(2)
    assert not played, "its events are used again"


def test_the_cache_is_overwritten_and_waited_for(played: list[tuple]) -> None:
    device = cuda.TimedDevice()
    device.flush()
    device.flush()
    names = [call[0] for call in played if call[0] in ("cudaMalloc", "cudaMemsetAsync", "cudaDeviceSynchronize")]
    assert names == ["cudaMalloc", *["cudaMemsetAsync", "cudaDeviceSynchronize"] * 2]
    (size,) = {call[3] for call in played if call[0] == "cudaMemsetAsync"}
    assert size == 256 << 20


def test_a_copy_counts_bytes_read_and_written_and_gives_its_memory_back(played: list[tuple]) -> None:
    rate = cuda.TimedDevice().copy_bandwidth()
    assert rate == pytest.approx(2 * (1 << 30) / 2e-3)
    counts = Counter(call[0] for call in played)
    assert counts["cudaMemcpyAsync"] == 21, "the first does not count"
    assert counts["cudaMalloc"] == counts["cudaFree"] == 2
    assert counts["cudaEventCreate"] == counts["cudaEventDestroy"]
    assert counts["cudaStreamCreateWithFlags"] == counts["cudaStreamDestroy"] == 1


@pytest.fixture
def torch_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's products and events, played: each product of its own kind takes a time that is known."""
    import torch

    spent = [0.0]

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = spent[0]

        def synchronize(self) -> None: ...

        def elapsed_time(self, end: "Event") -> float:
            return end.at - self.at

    class Played:
        T = None

        def __init__(self, milliseconds: float) -> None:
            self.milliseconds = milliseconds

        def __matmul__(self, other: object) -> None:
            spent[0] += self.milliseconds

    def take(*given: Any) -> None:
        spent[0] += given[0].milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "randn", lambda *a, **k: Played(2.0))
    monkeypatch.setattr(torch, "randint", lambda *a, **k: Played(1.0))
    monkeypatch.setattr(torch, "ones", lambda *a, **k: Played(0.5))
    monkeypatch.setattr(torch, "_int_mm", take)
    monkeypatch.setattr(torch, "dot", take)


@pytest.mark.usefixtures("torch_events")
def test_limits_are_operations_and_bytes_a_second() -> None:
    assert cuda.tensor_core_rates() == pytest.approx({"float16": 2 * 8192**3 / 2e-3, "int8": 2 * 8192**3 / 1e-3})
    assert cuda.read_bandwidth() == pytest.approx((2 << 30) / 0.5e-3)
