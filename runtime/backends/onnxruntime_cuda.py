"""onnxruntime on an NVIDIA GPU: tensors bound to device memory once per choice of sizes, replayed as CUDA graphs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..contract import GraphSpec, TensorSpec
from ..errors import BackendError
from .base import Array, Backend, Feeds
from .bindings import Binding, DeviceTensors, HostArrays, Request
from .buckets import Sizes, shape_of
from .device import CudaDevice, Device
from .on_device import check_tensors, locate
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

    `run_on_device` binds tensors where they lie. A recorded graph knows one place only, so where sizes have one,
    tensors of up to MOST_COPIED bytes are copied there and back, on the GPU. onnxruntime computes on a stream of its
    own, which waits for no other, and it copies inputs that it wants elsewhere as they are bound. So a call waits for
    the caller's stream before it binds anything. onnxruntime's run returns when its own stream is done.

    Args:
        name, file, spec, provider, threads: as of `OnnxRuntimeBackend`.
        device: onnxruntime's name of the memory to bind: cuda, or cpu where nothing else is at hand.
        index: which of these devices.
        graphs: whether the provider records CUDA graphs.
        memory: what finds tensors on the GPU; None for CUDA, opened when it is first needed.
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
        memory: Device | None = None,
    ) -> None:
        super().__init__(name, file, spec, provider, threads, extra="gpu" if device == "cuda" else "cpu")
        import onnxruntime

        self._ort: Any = onnxruntime
        self._device = device, index
        self._graphs = graphs
        self._memory = memory
        self._stream: int | None = None  # of the memory
        self._turn = threading.Lock()
        self._number = 0  # of the graph begun last
        self._recorded: set[int] = set()  # numbers of graphs, also of those that are no longer used
        self._here = threading.local()  # its `recorded`: the numbers that the calling thread has recorded
        self._seen: set[tuple[int, ...]] = set()
        self._failed: dict[tuple[int, ...], Failed] = {}
        self._bindings: dict[tuple[int, ...], Binding] = {}

    @property
    def bindings(self) -> int:
        """How many choices of sizes have a binding of their own."""
        return len(self._bindings)

    @property
    def graphs(self) -> int:
        """How many choices of sizes got a recorded graph so far."""
        return len(self._recorded)

    def run_on_device(self, feeds: Mapping[str, Any], out: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """See `OnDevice`. MissingExtra where cuda-python and cuda-core are not installed."""
        self._refuse_forked()
        sizes = check_tensors(self.spec, self.ranges, feeds)
        with self._turn:
            self._refuse_closed()
            memory, stream = self._opened_memory()
            memory.activate()
            with SESSIONS.together():
                located = locate(memory, stream, self.spec, sizes, feeds, out or {})
                memory.synchronize(stream)
            self._answer_in_turn(sizes, DeviceTensors(memory, stream, self.spec, sizes, located.addresses))
            return located.results

    def _answer(self, sizes: Sizes, feeds: Feeds) -> dict[str, Array]:
        with self._turn:
            self._refuse_closed()
            return self._answer_in_turn(sizes, HostArrays(feeds))

    def _refuse_closed(self) -> None:
        if self._session is None:
            raise BackendError(f"{self.name} was closed")

    def _opened_memory(self) -> tuple[Device, int]:
        if self._memory is None:
            self._memory = CudaDevice(self._device[1])
        if self._stream is None:
            self._stream = self._memory.create_stream()
        return self._memory, self._stream

    def _answer_in_turn(self, sizes: Sizes, request: Request) -> dict[str, Array]:
        try:
            return self._answer_alone(tuple(sizes.values()), sizes, request)
        except Exception as error:  # onnxruntime's exceptions have no common base but Exception
            raise self._failure(error) from error

    def _answer_alone(self, key: tuple[int, ...], sizes: Sizes, request: Request) -> dict[str, Array]:
        """The outputs, by a recorded graph where there is one or may be; without one where that fails."""
        binding = None
        try:
            binding = self._bind(key, sizes, request, record=key not in self._failed or self._failed[key].due())
            results = self._compute(binding, request)
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
        return self._compute(self._bind(key, sizes, request, record=False), request)

    def _compute(self, binding: Binding, request: Request) -> dict[str, Array]:
        recorded: set[int] = self._here.__dict__.setdefault("recorded", set())
        with SESSIONS.alone() if binding.graph and binding.graph not in recorded else SESSIONS.together():
            request.send(binding)
            self._session.run_with_iobinding(binding.io, binding.options)
            results = request.fetch(binding)
        recorded.add(binding.graph)
        return results

    def _release(self) -> None:
        """Wait for the run under way, then drop the session and everything bound."""
        with self._turn:
            with SESSIONS.together():
                self._bindings.clear()
            super()._release()
            if self._memory is not None and self._stream is not None:
                self._memory.activate()
                self._memory.destroy_stream(self._stream)
                self._stream = None

    def _bind(self, key: tuple[int, ...], sizes: Sizes, request: Request, *, record: bool) -> Binding:
        """Device memory for these sizes; kept, and given a graph to record, once they came before.

        Without a graph the tensors of a request that lie on the device are bound there.
        """
        keep = key in self._seen and (key in self._bindings or len(self._bindings) < MAX_GRAPHS)
        graph = self._graphs and record and keep and request.may_copy and len(self._recorded) < MAX_GRAPHS
        found = self._bindings.get(key) if request.may_copy else None
        if found is not None and (found.graph or not (graph or request.addresses)):
            return found
        self._seen.add(key)
        self._number += graph
        options = self._ort.RunOptions()
        if self._graphs:
            # -1 tells the provider to run without recording.
            options.add_run_config_entry("gpu_graph_id", str(self._number if graph else -1))
        if request.addresses and not graph:
            return self._bind_in_place(sizes, request.addresses, options)
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
        binding = Binding(io, options, inputs, outputs, self._number if graph else 0)
        if keep:
            self._bindings[key] = binding
        return binding

    def _bind_in_place(self, sizes: Sizes, addresses: Mapping[str, int], options: Any) -> Binding:
        """The tensors of one request where they lie."""

        def place(tensor: TensorSpec) -> tuple[Any, ...]:
            kind = np.dtype(tensor.dtype).type
            return tensor.name, *self._device, kind, shape_of(tensor, sizes), addresses[tensor.name]

        with SESSIONS.together():
            io = self._session.io_binding()
            for tensor in self.spec.inputs:
                io.bind_input(*place(tensor))
            for tensor in self.spec.outputs:
                io.bind_output(*place(tensor))
        return Binding(io, options, {}, {}, 0)

    def _allocate(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self._ort.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(dtype).type, *self._device)
