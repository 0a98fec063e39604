"""Timing of candidates that take turns in one run, and the machine's own limits, measured beside them."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata

import numpy as np

from ..runtime.cpus import usable_cpus

SETTLED = 0.02  # seconds
PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "numpy")


@dataclass(frozen=True)
class Latency:
    """Percentiles of one operation's wall time in milliseconds, over `runs` calls after the warm-up."""

    p50: float
    p90: float
    p99: float
    best: float
    runs: int

    @classmethod
    def of(cls, seconds: list[float]) -> Latency:
        """Summarize wall times in seconds."""
        p50, p90, p99 = np.percentile(seconds, [50, 90, 99]) * 1e3
        return cls(float(p50), float(p90), float(p99), min(seconds) * 1e3, len(seconds))


def take_turns(
    candidates: Mapping[str, Callable[[], object]], seconds: float, warmup: int = 3, most: int = 1000, in_a_row: int = 1
) -> dict[str, Latency]:
    """Time callables in turn, so that a slow period of the machine affects all of them.

    Args:
        candidates: what to call, by name.
        seconds: how long the rounds may take together; at least five rounds are run.
        warmup: number of calls of each candidate that are not counted.
        most: largest number of rounds.
        in_a_row: number of calls of each candidate in a round. Where it is more than one, each turn begins when the
            threads of the candidate before have stopped, and its first calls, for SETTLED, are not counted: the caches
            then hold the candidate's own data, and its threads run.
    """
    for call in candidates.values():
        for _ in range(warmup):
            call()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    start = time.perf_counter()
    rounds = 0
    while rounds < 5 or (rounds < most and time.perf_counter() - start < seconds):
        for name, call in candidates.items():
            if in_a_row > 1:
                wait_for_threads()
                _call_for(call, SETTLED)
            for _ in range(in_a_row):
                before = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - before)
        rounds += 1
    return {name: Latency.of(found) for name, found in times.items()}


def wait_for_threads(most: float = 1.0) -> None:
    """Sleep until no thread of this process runs, or for `most` seconds.

    OpenMP's threads, which PyTorch uses, look for work for 7 to 10 ms after they had some, on the very CPUs that the
    next candidate needs.
    """
    end = time.perf_counter() + most
    while time.perf_counter() < end:
        used = time.process_time()
        time.sleep(0.01)
        if time.process_time() - used < 0.001:
            return


def _call_for(call: Callable[[], object], seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        call()


def read_bandwidth(threads: int) -> float:
    """Bytes a second that `threads` threads read from memory: the best of five passes over 1 GiB of float32.

    Each pass is a BLAS dot product of a vector with itself: it writes nothing, and measured fastest of numpy's
    reductions (30.6 GB/s on two cores of a Zen 4, where a sum gave 24.3 and a maximum 29.8).
    """
    from concurrent.futures import ThreadPoolExecutor

    parts = np.array_split(np.ones(1 << 28, np.float32), max(threads, 1))
    best = np.inf
    with ThreadPoolExecutor(len(parts)) as pool:
        for _ in range(5):
            before = time.perf_counter()
            list(pool.map(np.dot, parts, parts))
            best = min(best, time.perf_counter() - before)
    return sum(part.nbytes for part in parts) / best


def float32_rate() -> float:
    """Floating-point operations a second of numpy's float32 matrix product at 2048^3: the best of five."""
    a = np.random.default_rng(0).standard_normal((2048, 2048), np.float32)
    best = np.inf
    for _ in range(5):
        before = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - before)
    return 2 * 2048**3 / best


def machine(packages: tuple[str, ...]) -> dict[str, str | int]:
    """The machine that figures belong to: processor, cores, Python and versions of the installed packages."""
    record: dict[str, str | int] = {
        "processor": _processor(),
        "cores": usable_cpus(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }
    for package in packages:
        try:
            record[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            record[package] = "not installed"
    return record


def _processor() -> str:
    """The processor's name, with family and model where Linux reports them: a virtual machine's name may hide both."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            first = file.read().split("\n\n", 1)[0]
    except OSError:
        first = ""
    fields: dict[str, str] = {}
    for line in first.splitlines():
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return name
