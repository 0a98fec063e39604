"""On which backend each graph of a bundle runs fastest here: measured once, and kept beside the engines.

A recurrent encoder of one caption is some dozens of small kernels that wait for one another, which a CPU may finish
sooner than a GPU; with many captions it does not. So where a GPU works, `auto` runs each graph there and on the CPU at
the batch size that is asked for, copies to and from the GPU included, and takes the faster. Both are of one precision,
but that the CPU's int8 may also be `int8_x86`, which most CPUs compute sooner than the `int8` of TensorRT.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..cpus import usable_cpus
from ..errors import InputError
from ..extras import package_version
from ..files import write_file
from ..gpu import Gpu
from ..strict_json import decode, read_json
from .base import Array, Backend
from .buckets import shape_of
from .sidecar import ENGINES, host_os
from .table import BACKENDS

_log = logging.getLogger(__name__)
SECONDS = 1.0  # that all measurements of a bundle may take, warming up not counted
_LEAST = 3  # runs of each
_BATCHED = ("B", "C")  # axes along which a request is large; images of a search are many at any batch


@dataclass(frozen=True)
class Placement:
    """What was measured of a bundle on a machine.

    Attributes:
        machine: the GPU, its driver, the number of CPUs, the system, and versions of the libraries.
        precisions: graph -> the precision that it was asked for at.
        graphs: file in the bundle -> its sha256, of every file that was measured.
        batch: images or captions of a call.
        milliseconds: graph -> candidate -> the fastest of some calls. A candidate is a backend, or a backend and the
            precision that it runs at, where that is not the one asked for, such as `onnxruntime int8_x86`.
    """

    machine: Mapping[str, str]
    precisions: Mapping[str, str]
    graphs: Mapping[str, str]
    batch: int
    milliseconds: Mapping[str, Mapping[str, float]]

    @property
    def fastest(self) -> dict[str, str]:
        """Graph -> the candidate that runs it fastest."""
        return {graph: min(times, key=lambda name: times[name]) for graph, times in self.milliseconds.items()}


def place(
    bundle: str | Path,
    precisions: Mapping[str, str],
    opened: Mapping[str, Mapping[str, Backend]],
    gpu: Gpu,
    driver: str | None,
    batch: int,
) -> Placement:
    """What was measured of these graphs on this machine, now or earlier.

    Args:
        bundle: the bundle's folder; where it cannot be written to, every process measures anew.
        precisions: graph -> precision.
        opened: candidate, as in `Placement` -> graph -> the graph, open; not every candidate has every graph.
        gpu, driver: what the GPU backend runs on.
        batch: images or captions of a call.
    """
    backends = sorted({candidate.split()[0] for candidate in opened})
    versions = {name: package_version(BACKENDS[name].package) or "none" for name in backends}
    machine = {"gpu": gpu.name, "driver": driver or "unknown", "cpus": str(usable_cpus()), "os": host_os(), **versions}
    graphs = {one.spec.file: one.spec.sha256 for own in opened.values() for one in own.values()}
    candidates = {graph: sorted(name for name, own in opened.items() if graph in own) for graph in precisions}
    identity = {"machine": machine, "precisions": dict(precisions), "graphs": graphs, "batch": batch}
    key = hashlib.sha256(json.dumps([identity, candidates], sort_keys=True).encode()).hexdigest()
    path = Path(bundle).resolve() / ENGINES / f"placement.{key[:16]}.json"
    known = _read(path)
    if (
        known is not None
        and {name: getattr(known, name) for name in identity} == identity
        and {graph: sorted(times) for graph, times in known.milliseconds.items()} == candidates
    ):
        return known
    each = SECONDS / sum(map(len, opened.values()))
    measured = {
        graph: {name: milliseconds(opened[name][graph], batch, each) for name in names}
        for graph, names in candidates.items()
    }
    found = Placement(machine, dict(precisions), graphs, batch, measured)
    try:
        path.parent.mkdir(exist_ok=True)
        write_file(path, (json.dumps(asdict(found), indent=2, sort_keys=True) + "\n").encode())
    except OSError as error:  # read-only or full: the next process measures again
        _log.info("where the graphs run fastest is not kept for the next start: %s", error)
    return found


def read_placements(bundle: str | Path) -> list[Placement]:
    """What was measured of a bundle, on any machine."""
    found = [_read(path) for path in sorted((Path(bundle) / ENGINES).glob("placement.*.json"))]
    return [placement for placement in found if placement is not None]


def milliseconds(backend: Backend, batch: int, seconds: float) -> float:
    """The fastest of some calls of a graph at a batch size, or as near to it as the graph takes."""
    sizes = {
        symbol: min(max(batch if symbol in _BATCHED else limits.opt, limits.min), limits.max)
        for symbol, limits in backend.ranges.items()
    }
    feeds: dict[str, Array] = {
        tensor.name: np.ones(shape_of(tensor, sizes), tensor.dtype) for tensor in backend.spec.inputs
    }
    for _ in range(2):  # recorded sizes are replayed from the third call on
        backend.run(feeds)
    best, runs, ends = float("inf"), 0, time.perf_counter() + seconds
    while runs < _LEAST or time.perf_counter() < ends:
        before = time.perf_counter()
        backend.run(feeds)
        best = min(best, time.perf_counter() - before)
        runs += 1
    return best * 1e3


def _read(path: Path) -> Placement | None:
    """A placement that was kept; None where there is none, or it cannot be understood, so that it is measured anew."""
    try:
        raw: Any = read_json(path)
        return decode(Placement, raw, "placement")
    except (OSError, InputError):
        return None
