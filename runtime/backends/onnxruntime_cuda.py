"""onnxruntime on an NVIDIA GPU: tensors bound to device memory once per choice of sizes, replayed as CUDA graphs."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..contract import GraphSpec
from ..errors import BackendError
from .base import Array, Backend, Feeds
from .buckets import Sizes
from .lane import shape_of
from .onnxruntime_gpu import GpuSession, is_short_of_memory
from .recording import SESSIONS, Failed

# Without this an fp32 graph would not be one; `tf32` has what it does not reach.
_OPTIONS = {"use_tf32": "0"}
# onnxruntime never gives a recorded graph back, so only this many choices of sizes get one, first come, first served.
MAX_GRAPHS = 16
_log = logging.getLogger(__name__)


def open_file(file: Path, spec: GraphSpec, threads: int | None, gpu: int = 0) -> Backend:
    """Open an ONNX file on a GPU; `threads` serve what little stays on the CPU."""
    try:
        return _open(file, spec, threads, gpu, graphs=True)
    except BackendError as error:
        # onnxruntime refuses to record a session of which some node must stay on the CPU; it runs all the same.
        if "graph feature" not in str(error):
            raise
    return _open(file, spec, threads, gpu, graphs=False)


def _open(file: Path, spec: GraphSpec, threads: int | None, gpu: int, *, graphs: bool) -> BoundBackend:
    options = _OPTIONS | {"device_id": str(gpu), "enable_cuda_graph": "1" if graphs else "0"}
    provider = "CUDAExecutionProvider", options
    return BoundBackend("onnxruntime_cuda", file, spec, provider, threads, device="cuda", index=gpu, graphs=graphs)


class BoundBackend(GpuSession):
    """An onnxruntime session whose inputs and outputs live in device memory, one binding for each choice of sizes.

    `run` may be called from several threads; the calls take turns, and where onnxruntime records a graph, those of all
    sessions do. Sizes that come a second time keep their binding, so that later calls allocate nothing on the device
    and replay a recorded graph where `graphs` is set; onnxruntime records one for each thread that calls. A recording
    that failed is tried again, ever less often. Where memory is short, what is bound is freed, and the request runs.

    Args:
        name, file, spec, provider, threads: as of `OnnxRuntimeBackend`.
        device: onnxruntime's name of the memory to bind: cuda, or cpu where nothing else is at hand.
        index: which of these devices.
        graphs: whether the provider records CUDA graphs.
    """

    step = 8

    def __init__(
        self,
        name: str,
        file: Path,
        spec: GraphSpec,
        provider: tuple[str, dict[str, str]],
        threads: int | None,
        *,
        device: str,
        index: int = 0,
        graphs: bool,
    ) -> None:
        super().__init__(name, file, spec, provider, threads, extra="gpu" if device == "cuda" else "cpu")
        import onnxruntime

        self._ort: Any = onnxruntime
        self._device = device, index
        self._graphs = graphs
        self._turn = threading.Lock()
        self._number = 0  # of the graph begun last
        self._recorded: set[int] = set()  # numbers of graphs, also of those that are no longer used
        self._here = threading.local()  # its `recorded`: the numbers that the calling thread has recorded
        self._seen: set[tuple[int, ...]] = set()
        self._failed: dict[tuple[int, ...], Failed] = {}
        self._bindings: dict[tuple[int, ...], _Binding] = {}

    @property
    def bindings(self) -> int:
        """How many choices of sizes have a binding of their own."""
        return len(self._bindings)

    @property
    def graphs(self) -> int:
        """How many choices of sizes got a recorded graph so far."""
        return len(self._recorded)

    def _answer(self, sizes: Sizes, feeds: Feeds) -> dict[str, Array]:
        with self._turn:
            if self._session is None:
                raise BackendError(f"{self.name} was closed")
            try:
                return self._answer_alone(tuple(sizes.values()), sizes, feeds)
            except Exception as error:  # onnxruntime's exceptions have no common base but Exception
                raise self._failure(error) from error

    def _answer_alone(self, key: tuple[int, ...], sizes: Sizes, feeds: Feeds) -> dict[str, Array]:
        """The outputs, by a recorded graph where there is one or may be; without one where that fails."""
        binding = None
        try:
            binding = self._bind(key, sizes, record=key not in self._failed or self._failed[key].due())
            results = self._compute(binding, feeds)
            if binding.graph:
                self._recorded.add(binding.graph)
                self._failed.pop(key, None)
            return results
        except Exception as error:
            # Memory may be there later, and any thread of the process, torch's too, can void a recording.
            short = is_short_of_memory(error)
            if not short and (binding is None or not binding.graph):
                raise
            _log.warning("%s runs sizes %s without a recorded graph for now: %s", self.name, sizes, error)
            self._failed.setdefault(key, Failed()).wait()
        binding = None
        with SESSIONS.together():
            if short:
                self._bindings.clear()
            else:
                self._bindings.pop(key, None)
        return self._compute(self._bind(key, sizes, record=False), feeds)

    def _compute(self, binding: _Binding, feeds: Feeds) -> dict[str, Array]:
        recorded: set[int] = self._here.__dict__.setdefault("recorded", set())
        with SESSIONS.alone() if binding.graph and binding.graph not in recorded else SESSIONS.together():
            for name, array in feeds.items():
                binding.inputs[name].update_inplace(np.ascontiguousarray(array))
            self._session.run_with_iobinding(binding.io, binding.options)
            # On some devices `numpy` is a view of the bound memory, which the next call overwrites.
            results = {name: np.array(value.numpy()) for name, value in binding.outputs.items()}
        recorded.add(binding.graph)
        return results

    def _release(self) -> None:
        """Wait for the run under way, then drop the session and everything bound."""
        with self._turn:
            with SESSIONS.together():
                self._bindings.clear()
            super()._release()

    def _bind(self, key: tuple[int, ...], sizes: Sizes, *, record: bool) -> _Binding:
        """Device memory for these sizes; kept, and given a graph to record, once they came before."""
        keep = key in self._seen and (key in self._bindings or len(self._bindings) < MAX_GRAPHS)
        graph = self._graphs and record and keep and len(self._recorded) < MAX_GRAPHS
        found = self._bindings.get(key)
        if found is not None and (found.graph or not graph):
            return found
        self._seen.add(key)
        self._number += graph
        options = self._ort.RunOptions()
        if self._graphs:
            # -1 tells the provider to run without recording.
            options.add_run_config_entry("gpu_graph_id", str(self._number if graph else -1))
        with SESSIONS.together():
            io = self._session.io_binding()
            inputs, outputs = (
                {t.name: self._allocate(shape_of(t, sizes), t.dtype) for t in side}
                for side in (self.spec.inputs, self.spec.outputs)
            )
            for name, value in inputs.items():
                io.bind_ortvalue_input(name, value)
            for name, value in outputs.items():
                io.bind_ortvalue_output(name, value)
        binding = _Binding(io, options, inputs, outputs, self._number if graph else 0)
        if keep:
            self._bindings[key] = binding
        return binding

    def _allocate(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self._ort.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(dtype).type, *self._device)


@dataclass(frozen=True)
class _Binding:
    io: Any
    options: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    graph: int  # the number of its graph; 0 for none
