"""One measurement of the GPU benchmark, in a process of its own: `python -m chan_rt.bench.gpu_worker FOLDER`.

A process, because after some errors every call of CUDA fails, and because libraries keep memory. FOLDER/request.json
says what to measure; the worker writes FOLDER/report.json.
"""

from __future__ import annotations

import cProfile
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.gallery.cuda.kernels import level_stride
from ..runtime.gallery.cuda.levels import FEW
from ..runtime.gallery.kernels.layout import stored_width
from .gpu_candidates import Search, Where, candidates, precision_of
from .gpu_images import AGREE, Case, Floats, K, ResidentImages, make_case
from .measure import Latency

Record = dict[str, Any]
_PAIR_RUNS = 4  # of all pairs; the first warms up
_FUNCTIONS = 20  # that are named
_LAUNCHES = 64  # that are timed at most of one caption


def main(folder: Path) -> None:
    """Carry out FOLDER/request.json; the last line on stderr is the reason of a failure."""
    request = json.loads((folder / "request.json").read_text())
    try:
        report = _SECTIONS[request["section"]](request)
    except Exception as error:  # peers and libraries fail in their own ways
        print(f"{type(error).__name__}: {error}".strip().splitlines()[0], file=sys.stderr)  # noqa: T201
        raise SystemExit(1) from None
    (folder / "report.json").write_text(json.dumps(report))


def cases(request: Record) -> Record:
    """Make a gallery and its captions, which other processes then measure on."""
    make_case(Path(request["case"]), *request["shape"])
    return {"bytes": sum(file.stat().st_size for file in Path(request["case"]).iterdir())}


def limits(request: Record) -> Record:
    """Bytes a second that this GPU reads and copies, and operations a second of its tensor cores."""
    from .cuda import TimedDevice, read_bandwidth, tensor_core_rates

    found: Record = {"copy_bytes_a_second": TimedDevice().copy_bandwidth(), "read_bytes_a_second": read_bandwidth()}
    return found | {"tensor_cores": tensor_core_rates()}


def search(request: Record) -> Record:
    """One caption, another one at each call: wall time, time of each kernel, share of the certified top found."""
    case, where = _opened(request)
    with candidates()[request["candidate"]](case.images, where) as find:
        flush = getattr(where.device, "flush", None) or _flusher(where)
        times = timed(find, case.captions, request["seconds"], flush)
        found: Record = {
            "search_ms": asdict(Latency.of(times)),
            "kernels_ms": kernel_times(find, case.captions, where.device),
            "agreement": agreement(find, case),
        }
        if where.listed:
            found["rows"] = {"listed": float(np.median(where.listed)), "rescored": float(np.median(where.rescored))}
            found["bytes_read"] = bytes_read(case.images, where, precision_of(request["candidate"]))
        return found


def bytes_read(images: ResidentImages, where: Where, precision: str) -> int:
    """Bytes of vectors that a search for one caption reads on the GPU: the median of all searches."""
    stride = level_stride(stored_width(images.dim))
    if not where.left or stride is None:
        return images.size(precision)
    scanned = int(np.median(where.left)) + min(FEW, images.count)
    return images.regions * (images.count * stride + scanned * stored_width(images.dim))


def host(request: Record) -> Record:
    """Which functions of the host take the time of a search for one caption, and of one for many."""
    case, where = _opened(request)
    many = [case.captions[i % len(case.captions)] for i in range(request["many"])]
    with candidates()[request["candidate"]](case.images, where) as find:
        return {
            "one": profiled(find, [[caption] for caption in case.captions]),
            "many": profiled(find, [many] * _PAIR_RUNS),
        }


def profiled(find: Search, asked: Sequence[Sequence[Floats]]) -> Record:
    """Median milliseconds of a call, and the functions of this process that take longest, by their own time a call.

    The profiler slows functions down, so the calls are timed without it first. Waiting for the GPU is a function, too.
    """
    find(asked[0])
    times = []
    for captions in asked:
        before = time.perf_counter()
        find(captions)
        times.append(time.perf_counter() - before)
    profile = cProfile.Profile()
    profile.runcall(lambda: [find(captions) for captions in asked])
    profile.create_stats()
    found: dict[tuple[str, int, str], Any] = profile.stats
    functions = [
        {"function": f"{Path(file).stem}.{name}", "ms": own / len(asked) * 1e3, "calls": calls / len(asked)}
        for (file, _, name), (_, calls, own, _, _) in found.items()
    ]
    functions.sort(key=lambda each: -each["ms"])
    return {"captions": len(asked[0]), "ms": float(np.median(times)) * 1e3, "functions": functions[:_FUNCTIONS]}


def shortlist(request: Record) -> Record:
    """How many rows are listed and how many scored again for one caption."""
    case, where = _opened(request)
    with candidates()[request["candidate"]](case.images, where) as find:
        for caption in case.captions[: request["captions"]]:
            find([caption])
    return {"listed": where.listed, "rescored": where.rescored}


def all_pairs(request: Record) -> Record:
    """Seconds for the top of every caption among all images."""
    case, where = _opened(request)
    with candidates()[request["candidate"]](case.images, where) as find:
        times = []
        for _ in range(_PAIR_RUNS):
            before = time.perf_counter()
            find(case.captions)
            times.append(time.perf_counter() - before)
        return {"seconds": float(np.median(times[1:])), "agreement": agreement(find, case)}


def timed(find: Search, captions: Sequence[Floats], seconds: float, flush: Callable[[], None]) -> list[float]:
    """Seconds of each call, a caption each in turn, the cache flushed before each; the first three warm up."""
    for caption in captions[:3]:
        find([caption])
    times: list[float] = []
    ends = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < ends:
        caption = captions[len(times) % len(captions)]
        flush()
        before = time.perf_counter()
        find([caption])
        times.append(time.perf_counter() - before)
    return times


def kernel_times(find: Search, captions: Sequence[Floats], device: Any) -> dict[str, float]:
    """Median milliseconds that each kernel takes in a search; empty for what does not launch through such a device."""
    if device is None:
        return {}
    device.milliseconds()
    spent: dict[str, list[float]] = {}
    for caption in captions[:AGREE]:
        device.prepare(_LAUNCHES)
        device.flush()
        device.timing = True
        find([caption])
        device.timing = False
        of_search: dict[str, float] = {}
        for name, each in device.milliseconds():
            of_search[name] = of_search.get(name, 0.0) + each
        for name, each in of_search.items():
            spent.setdefault(name, []).append(each)
    return {name: float(np.median(times)) for name, times in spent.items()}


def agreement(find: Search, case: Case) -> float:
    """The share of the certified top that a candidate finds, on average."""
    found: list[NDArray[np.int64]] = find(case.captions[: len(case.truth)])
    return float(np.mean([len(set(a.tolist()) & set(b.tolist())) / K for a, b in zip(found, case.truth, strict=True)]))


def _opened(request: Record) -> tuple[Case, Where]:
    case = Case.load(Path(request["case"]), one_part=request.get("one_part", False))
    capability = request["capability"]
    return case, Where(None if capability is None else tuple(capability))


def _flusher(where: Where) -> Callable[[], None]:
    """What flushes the cache for candidates in PyTorch."""
    if where.capability is None:
        return lambda: None
    import torch

    data = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")

    def flush() -> None:
        data.zero_()
        torch.cuda.synchronize()

    return flush


def parity(request: Record) -> Record:
    """The verdict on every backend and precision of the demo's bundle, with engines built for this GPU."""
    from .gpu_backends import parity

    return parity(Path(request["demo"]), small=request["capability"] is None)


def backends(request: Record) -> Record:
    """A model of the published size: out of the GPU's memory and into it, or as `chan bench` measures it."""
    from .gpu_backends import backends, from_gpu_memory

    measure = from_gpu_memory if request["from_gpu_memory"] else backends
    return measure(request["seconds"], small=request["capability"] is None)


_SECTIONS: dict[str, Callable[[Record], Record]] = {
    "cases": cases,
    "limits": limits,
    "search": search,
    "host": host,
    "shortlist": shortlist,
    "all-pairs": all_pairs,
    "backends": backends,
    "parity": parity,
}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
