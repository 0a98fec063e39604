"""Opening graphs by the name of a backend (see `table`); each backend's library is imported when it is opened."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..checks import check_choice, check_threads
from ..contract import GraphSpec, Manifest, verified
from ..errors import BackendError, ChanError, InputError
from ..gpu import examine_gpu
from .base import Array, Backend, check_feeds
from .engine_staleness import find_engine
from .placement import Placement, place
from .probe import check_gpu
from .table import BACKENDS, CPU_BACKEND, CPU_INT8

__all__ = [
    "BACKENDS",
    "CPU_BACKEND",
    "Array",
    "Backend",
    "OpenedGraphs",
    "check_feeds",
    "find_engine",
    "open_backend",
    "open_graph",
    "open_graphs",
    "try_out",
]

_log = logging.getLogger(__name__)


def open_backend(name: str, file: str | Path, spec: GraphSpec, *, threads: int | None = None, gpu: int = 0) -> Backend:
    """Open one graph.

    Args:
        name: one of BACKENDS.
        file: the ONNX file, or for the TensorRT flavors the engine, already verified.
        spec: the graph's inputs and outputs.
        threads: CPU threads of the onnxruntime backends; None for one per CPU this process may use.
        gpu: the GPU of those that run on one, as CUDA counts them.

    Raises:
        InputError: an unknown name, or threads below 1 or above 1024.
        BackendError: the library is missing or cannot run here, or the file does not fit the spec.
    """
    check_choice("backend", name, BACKENDS)
    check_threads(threads)
    module = importlib.import_module(f"{__name__}.{name}")
    backend: Backend = module.open_file(Path(file), spec, threads, gpu)
    return backend


def open_graph(
    name: str,
    bundle: str | Path,
    manifest: Manifest,
    graph: str,
    precision: str,
    *,
    threads: int | None = None,
    gpu: int = 0,
) -> Backend:
    """Open a bundle's graph with the backend `name`, its file (or the newest usable engine) verified by hash.

    Raises:
        InputError: no such backend, or `auto`, which `open_graphs` chooses for all graphs together.
        BundleError: no such graph at that precision, or a file that was altered.
        BackendError: as in `open_backend`; EngineError where no usable engine was built.
    """
    check_choice("backend", name, tuple(BACKENDS))
    spec = manifest.graph(graph, precision)
    if BACKENDS[name].runs == "engine":
        check_gpu(name, gpu)
        file = find_engine(bundle, graph, precision, name, gpu)
    else:
        file = verified(bundle, spec.file, spec.sha256)
    return open_backend(name, file, spec, threads=threads, gpu=gpu)


@dataclass(frozen=True)
class OpenedGraphs:
    """Graphs of a bundle that are open.

    Attributes:
        backends: graph name -> what runs it.
        passed_over: where `auto` was asked for, each better backend that was not taken, and why.
        placement: where `auto` took a GPU, what was measured to place the graphs.
    """

    backends: dict[str, Backend]
    passed_over: Mapping[str, str] = field(default_factory=dict)
    placement: Placement | None = None


def open_graphs(
    name: str,
    bundle: str | Path,
    manifest: Manifest,
    precisions: Mapping[str, str],
    *,
    threads: int | None = None,
    batch: int = 1,
    gpu: int = 0,
) -> OpenedGraphs:
    """Open several graphs of a bundle with one backend; for `auto`, with the first on which all of them really run.

    Where that is a GPU, `auto` measures each graph there and on the CPU, and takes the faster (`placement`).

    Args:
        name: one of BACKENDS, or `auto`: the first of BACKENDS that works.
        bundle: the bundle's folder.
        manifest: of the bundle.
        precisions: graph name -> precision.
        threads: as in `open_backend`.
        batch: how many images or captions a call will usually have, which decides where `auto` runs each graph.
        gpu: as in `open_backend`.

    Raises:
        InputError: no such backend.
        BundleError: a graph is not in the bundle, or its file was altered.
        BackendError: the backend cannot run here; for `auto`, with the reason of every one.
    """
    check_choice("backend", name, ("auto", *BACKENDS))
    for graph, precision in precisions.items():
        manifest.graph(graph, precision)  # an absent graph is no reason to try the next backend
    if name != "auto":
        return OpenedGraphs(_open_all(name, bundle, manifest, precisions, threads, gpu))
    reasons: dict[str, str] = {}
    for candidate, info in BACKENDS.items():
        try:
            backends = _open_all(candidate, bundle, manifest, precisions, threads, gpu)
        except BackendError as error:
            reasons[candidate] = str(error)
            continue
        try:
            for backend in backends.values():
                try_out(backend)
        except ChanError as error:
            reasons[candidate] = str(error)
            _close(backends)
            continue
        level = logging.INFO if info.gpu else logging.WARNING
        if not examine_gpu().gpus:  # nothing was passed over that anybody would miss
            level = logging.DEBUG
        for name, reason in reasons.items():
            _log.log(level, "auto takes %s and not %s: %s", candidate, name, reason)
        if not info.gpu:
            return OpenedGraphs(backends, reasons)
        chosen, placement = _placed(backends, bundle, manifest, precisions, threads, batch, gpu)
        return OpenedGraphs(chosen, reasons, placement)
    raise BackendError("no backend works here. " + "; ".join(f"{name}: {reason}" for name, reason in reasons.items()))


def _placed(
    backends: dict[str, Backend],
    bundle: str | Path,
    manifest: Manifest,
    precisions: Mapping[str, str],
    threads: int | None,
    batch: int,
    index: int,
) -> tuple[dict[str, Backend], Placement | None]:
    """Each graph on a GPU, or on the CPU where it is faster there, and how that was measured; the rest is closed."""
    gpu = examine_gpu().only(index)
    name = next(iter(backends.values())).name
    if not gpu.gpus:
        return backends, None
    opened = {name: backends}
    found: Placement | None = None
    try:
        for candidate, graphs in _on_cpu(manifest, precisions).items():
            try:
                opened[candidate] = _open_all(CPU_BACKEND, bundle, manifest, graphs, threads, index)
            except BackendError as error:
                _log.info("graphs are not tried with %s, because the CPU cannot run them: %s", candidate, error)
        if len(opened) == 1:
            return backends, None
        found = place(bundle, precisions, opened, gpu.gpus[0], gpu.driver, batch)
        fastest = found.fastest
        chosen = {graph: opened[fastest[graph]][graph] for graph in precisions}
    except (BackendError, InputError) as error:
        _log.info("all graphs run with %s, because the CPU failed: %s", name, error)
        chosen = dict(backends)
    except BaseException:
        for own in opened.values():
            _close(own)
        raise
    for own in opened.values():
        _close({graph: backend for graph, backend in own.items() if chosen[graph] is not backend})
    _log.info("auto runs %s", ", ".join(f"{graph} with {backend.name}" for graph, backend in chosen.items()))
    return chosen, found


def _on_cpu(manifest: Manifest, precisions: Mapping[str, str]) -> dict[str, Mapping[str, str]]:
    """Candidate, as `Placement` names it -> graphs that the CPU may run in place of a GPU -> their precision."""
    fast = {
        graph: CPU_INT8
        for graph, precision in precisions.items()
        if precision == "int8" and CPU_INT8 in manifest.graphs[graph]
    }
    return {CPU_BACKEND: precisions, **({f"{CPU_BACKEND} {CPU_INT8}": fast} if fast else {})}


def try_out(backend: Backend) -> None:
    """Run a backend once on ones of the smallest sizes it takes; an error gives the reason why it does not work."""
    sizes = backend.smallest
    feeds = {
        tensor.name: np.ones([axis if isinstance(axis, int) else sizes[axis] for axis in tensor.shape], tensor.dtype)
        for tensor in backend.spec.inputs
    }
    backend.run(feeds)


def _open_all(
    name: str, bundle: str | Path, manifest: Manifest, precisions: Mapping[str, str], threads: int | None, gpu: int
) -> dict[str, Backend]:
    backends: dict[str, Backend] = {}
    try:
        for graph, precision in precisions.items():
            backends[graph] = open_graph(name, bundle, manifest, graph, precision, threads=threads, gpu=gpu)
    except BaseException:
        _close(backends)
        raise
    return backends


def _close(backends: Mapping[str, Backend]) -> None:
    for backend in backends.values():
        backend.close()
