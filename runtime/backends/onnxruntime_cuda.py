"""onnxruntime on an NVIDIA GPU: tensors bound to device memory once per choice of sizes, replayed as CUDA graphs."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..contract import GraphSpec
from ..errors import BackendError
from .base import Array, Backend, Feeds, check_feeds
from .buckets import Sizes
from .lane import shape_of
from .onnxruntime import OnnxRuntimeBackend

# Without this an fp32 graph would not be one; `tf32` has what it does not reach.
_OPTIONS = {"use_tf32": "0"}
# onnxruntime never gives a recorded graph back, so only this many choices of sizes get one, first come, first served.
MAX_GRAPHS = 16
# onnxruntime captures in CUDA's global mode, which forbids every thread of the process what may wait for the device: so
# sessions that record take turns with one another, too, and threads of `CudaDevice` keep themselves apart.
_RECORDING = threading.Lock()
_log = logging.getLogger(__name__)


def open_file(file: Path, spec: GraphSpec, threads: int | None) -> Backend:
    """Open an ONNX file on the first GPU; `threads` serve what little stays on the CPU."""
    try:
        return BoundBackend("onnxruntime_cuda", file, spec, _provider(graphs=True), threads, device="cuda", graphs=True)
    except BackendError as error:
        # onnxruntime refuses to record a session of which some node must stay on the CPU; it runs all the same.
        if "graph feature" not in str(error):
            raise
    return BoundBackend("onnxruntime_cuda", file, spec, _provider(graphs=False), threads, device="cuda", graphs=False)


class BoundBackend(OnnxRuntimeBackend):
    """An onnxruntime session whose inputs and outputs live in device memory, one binding for each choice of sizes.

    `run` may be called from several threads; the calls take turns, with `graphs` those of all such backends. Sizes that
    come a second time keep their binding, so that later calls allocate nothing on the device and replay a recorded
    graph where `graphs` is set; onnxruntime records one for each thread that calls.

    Args:
        name, file, spec, provider, threads: as of `OnnxRuntimeBackend`.
        device: onnxruntime's name of the memory to bind: cuda, or cpu where nothing else is at hand.
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
        graphs: bool,
    ) -> None:
        super().__init__(name, file, spec, provider, threads, extra="gpu" if device == "cuda" else "cpu")
        import onnxruntime

        self._ort: Any = onnxruntime
        self._device = device
        self._graphs = graphs
        self._turn = _RECORDING if graphs else threading.Lock()
        self._process = os.getpid()
        self._number = 0  # of the graph recorded last
        self._seen: set[tuple[int, ...]] = set()
        self._unrecorded: set[tuple[int, ...]] = set()  # sizes whose recording failed
        self._bindings: dict[tuple[int, ...], _Binding] = {}

    @property
    def bindings(self) -> int:
        """How many choices of sizes have a binding of their own."""
        return len(self._bindings)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """See `Backend.run`."""
        sizes = check_feeds(self.spec, self.ranges, feeds)
        key = tuple(sizes.values())
        with self._turn:
            if self._session is None:
                raise BackendError(f"{self.name} was closed")
            if self._process != os.getpid():
                raise BackendError(f"{self.name} was opened before this process was forked: open it in this process")
            try:
                binding = self._bindings.get(key) or self._bind(key, sizes)
                try:
                    return self._compute(binding, feeds)
                except Exception as error:
                    if not binding.graph:
                        raise
                    # Any thread of the process, torch's too, can void a recording by an allocation.
                    _log.warning("%s runs sizes %s without a recorded graph: %s", self.name, sizes, error)
                    self._bindings.pop(key, None)
                    self._unrecorded.add(key)
                    return self._compute(self._bind(key, sizes), feeds)
            except Exception as error:  # onnxruntime's exceptions have no common base but Exception
                raise BackendError(f"{self.name} failed in {self.spec.file}: {error}") from error

    def _compute(self, binding: _Binding, feeds: Feeds) -> dict[str, Array]:
        for name, array in feeds.items():
            binding.inputs[name].update_inplace(np.ascontiguousarray(array))
        self._session.run_with_iobinding(binding.io, binding.options)
        # On some devices `numpy` is a view of the bound memory, which the next call overwrites.
        return {name: np.array(value.numpy()) for name, value in binding.outputs.items()}

    def close(self) -> None:
        """Wait for the run under way, then drop the session and everything bound."""
        with self._turn:
            self._bindings.clear()
            super().close()

    def _bind(self, key: tuple[int, ...], sizes: Sizes) -> _Binding:
        """Device memory for these sizes; kept, and given a graph to record, once they came before."""
        keep = key in self._seen and len(self._bindings) < MAX_GRAPHS
        self._seen.add(key)
        options = self._ort.RunOptions()
        graph = self._graphs and keep and key not in self._unrecorded
        if graph:
            self._number += 1
        if self._graphs:
            # -1 tells the provider to run without recording.
            options.add_run_config_entry("gpu_graph_id", str(self._number if graph else -1))
        io = self._session.io_binding()
        inputs, outputs = (
            {t.name: self._allocate(shape_of(t, sizes), t.dtype) for t in side}
            for side in (self.spec.inputs, self.spec.outputs)
        )
        for name, value in inputs.items():
            io.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            io.bind_ortvalue_output(name, value)
        binding = _Binding(io, options, inputs, outputs, graph)
        if keep:
            self._bindings[key] = binding
        return binding

    def _allocate(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self._ort.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(dtype).type, self._device, 0)


@dataclass(frozen=True)
class _Binding:
    io: Any
    options: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    graph: bool


def _provider(*, graphs: bool) -> tuple[str, dict[str, str]]:
    return "CUDAExecutionProvider", _OPTIONS | {"enable_cuda_graph": "1" if graphs else "0"}
