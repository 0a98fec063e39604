"""One lane of an engine: a stream, the buffers on it, and the execution contexts that use them, one request at a time.

A lane keeps its memory between calls and grows it when a request needs more, so a call like an earlier one allocates
nothing on the device and no pinned memory. With `capture`, sizes that come a second time get an execution context of
their own, whose whole work (copies in, kernels, copies out) is recorded as a CUDA graph and replayed from then on; a
context must not change once it was recorded, hence its own.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..contract import GraphSpec, TensorSpec
from ..errors import BackendError, GpuMemoryError
from .base import Array
from .buckets import Sizes, shape_of
from .device import Device
from .on_device import locate
from .recording import Failed

# A recorded graph costs a context and some MiB; a service sees few sizes often and many rarely.
MAX_GRAPHS = 16
_log = logging.getLogger(__name__)
Key = tuple[int, tuple[int, ...]]


@dataclass
class _Buffer:
    """Device memory of one tensor, and the pinned memory its values pass through."""

    address: int = 0
    capacity: int = 0
    host: Array | None = None


@dataclass
class _Bucket:
    """A context that serves one profile and one choice of sizes for good, and its recorded work."""

    context: Any
    graph: Any


class Lane:
    """See the module's text.

    Args:
        spec: the graph's inputs and outputs.
        device: where it runs.
        new_context: makes an execution context without device memory of its own.
        capture: record graphs; False where the library does so itself.
        failure: the library's own words on what went wrong last.

    Attributes:
        allocations: how often memory was allocated, for tests and for `chan bench`.
        graphs: number of graphs recorded so far.
    """

    def __init__(
        self,
        spec: GraphSpec,
        device: Device,
        new_context: Callable[[], Any],
        *,
        capture: bool,
        failure: Callable[[], str],
    ) -> None:
        self._spec = spec
        self._device = device
        self._new_context = new_context
        self._capture = capture
        self._failure = failure
        self._stream = device.create_stream()
        self._context = new_context()
        self._current: int | None = None
        self._buffers = {tensor.name: _Buffer() for tensor in (*spec.inputs, *spec.outputs)}
        self._scratch = _Buffer()
        self._buckets: OrderedDict[Key, _Bucket | None] = OrderedDict()  # None: seen once, or not to be recorded
        self._failed: dict[Key, Failed] = {}
        self.allocations = 0
        self.graphs = 0

    def run(self, profile: int, sizes: Sizes, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Compute `outputs`, which are filled in place, from `feeds`, whose shapes agree with `sizes`.

        Raises:
            BackendError: CUDA or the library failed, with its message; the lane is usable again if CUDA is.
        """
        device, key = self._device, (profile, tuple(sizes.values()))
        device.activate()
        self._reserve(sizes)
        for name, array in feeds.items():
            np.copyto(self._pinned(name, array.shape, array.dtype), array)
        try:
            bucket = self._bucket(key, sizes)
            if bucket is not None:
                device.launch(bucket.graph, self._stream)
            else:
                self._prepare(self._context, profile, sizes)
                self._enqueue(self._context, sizes)
            device.synchronize(self._stream)
            self._remember(key)
        except BaseException:
            with suppress(BackendError):  # the first failure is the one to tell
                self._forget()
            raise
        for name, array in outputs.items():
            np.copyto(array, self._pinned(name, array.shape, array.dtype))

    def run_on_device(
        self, profile: int, sizes: Sizes, feeds: Mapping[str, Any], out: Mapping[str, Any]
    ) -> dict[str, Any]:
        """As `run`, on DLPack tensors that lie on the device; outputs not in `out` are allocated."""
        device, stream, context = self._device, self._stream, self._context
        device.activate()
        located = locate(device, stream, self._spec, sizes, feeds, out)
        try:
            self._prepare(context, profile, sizes, located.addresses)
            self._execute(context)
            device.synchronize(stream)
        except BaseException:
            with suppress(BackendError):
                self._forget()
            raise
        return located.results

    def close(self) -> None:
        """Free everything; the lane must not run again."""
        self._device.activate()
        self._forget()
        self._context = None
        for buffer in (*self._buffers.values(), self._scratch):
            self._free(buffer)
        self._device.destroy_stream(self._stream)

    def _bucket(self, key: Key, sizes: Sizes) -> _Bucket | None:
        """The bucket that replays these sizes; None the first time they come, or where they cannot be recorded."""
        if not self._capture or key not in self._buckets:
            return None
        self._buckets.move_to_end(key)
        if key in self._failed and not self._failed[key].due():
            return None
        bucket = self._buckets[key]
        if bucket is None:
            bucket = self._buckets[key] = self._record(key, sizes)
        return bucket

    def _remember(self, key: Key) -> None:
        """Note that these sizes came; the ones not seen for longest are forgotten."""
        self._buckets.setdefault(key, None)
        while len(self._buckets) > MAX_GRAPHS:
            self._drop(self._buckets.popitem(last=False)[1])

    def _record(self, key: Key, sizes: Sizes) -> _Bucket | None:
        """The bucket of these sizes, or None where recording fails: they run unrecorded, where a true failure shows.

        A loop whose length only the device knows cannot be recorded, ever. Memory may be there later, and another
        thread's call may have voided the recording: so it is tried again, ever less often.
        """
        try:
            bucket = self._recorded(key, sizes)
        except BackendError as error:
            failed = self._failed.setdefault(key, Failed())
            failed.wait()
            _log.warning("sizes %s run without a recorded graph for now: %s", dict(sizes), error)
            return None
        self._failed.pop(key, None)
        self.graphs += 1
        return bucket

    def _recorded(self, key: Key, sizes: Sizes) -> _Bucket:
        try:
            context = self._new_context()
            self._prepare(context, key[0], sizes)
        except GpuMemoryError:
            self._forget()  # what is recorded holds memory, too
            raise
        self._enqueue(context, sizes)  # the first run after a change of shape does work that cannot be recorded
        self._device.synchronize(self._stream)
        self._device.begin_capture(self._stream)
        try:
            self._enqueue(context, sizes)
        finally:
            graph = self._device.end_capture(self._stream)
        return _Bucket(context, graph)

    def _prepare(self, context: Any, profile: int, sizes: Sizes, addresses: Mapping[str, int] | None = None) -> None:
        """Point a context at its profile, shapes, tensors and scratch memory."""
        if context is not self._context or self._current != profile:
            self._require(context.set_optimization_profile_async(profile, self._stream), f"choosing profile {profile}")
            self._device.synchronize(self._stream)
            if context is self._context:
                self._current = profile
        for tensor in self._spec.inputs:
            shape = shape_of(tensor, sizes)
            self._require(context.set_input_shape(tensor.name, shape), f"setting {tensor.name} to {list(shape)}")
        for name, buffer in self._buffers.items():
            address = buffer.address if addresses is None else addresses[name]
            self._require(context.set_tensor_address(name, address), f"binding {name}")
        self._grow(self._scratch, int(context.update_device_memory_size_for_shapes()), pinned=False)
        if self._scratch.capacity:
            context.set_device_memory(self._scratch.address, self._scratch.capacity)

    def _enqueue(self, context: Any, sizes: Sizes) -> None:
        """Queue the copies in, the engine and the copies out."""
        for tensor in self._spec.inputs:
            memory = self._bytes(tensor, sizes)
            self._device.copy_in(self._buffers[tensor.name].address, memory, self._stream)
        self._execute(context)
        for tensor in self._spec.outputs:
            memory = self._bytes(tensor, sizes)
            self._device.copy_out(memory, self._buffers[tensor.name].address, self._stream)

    def _execute(self, context: Any) -> None:
        self._require(context.execute_async_v3(self._stream), "running the engine")

    def _reserve(self, sizes: Sizes) -> None:
        for tensor in (*self._spec.inputs, *self._spec.outputs):
            size = prod(shape_of(tensor, sizes)) * np.dtype(tensor.dtype).itemsize
            self._grow(self._buffers[tensor.name], size, pinned=True)

    def _grow(self, buffer: _Buffer, size: int, *, pinned: bool) -> None:
        """Make room for `size` bytes. Graphs recorded with the old address are dropped."""
        if size <= buffer.capacity:
            return
        capacity = max(256, 1 << (size - 1).bit_length()) if size < 1 << 26 else size
        self._forget()
        self._free(buffer)
        self.allocations += 1
        address = self._device.malloc(capacity)
        if pinned:
            try:
                buffer.host = self._device.malloc_host(capacity)
            except BaseException:
                self._device.free(address)
                raise
        buffer.address, buffer.capacity = address, capacity

    def _free(self, buffer: _Buffer) -> None:
        if buffer.capacity:
            self._device.free(buffer.address)
            buffer.capacity = 0
        if buffer.host is not None:
            self._device.free_host(buffer.host)
            buffer.host = None

    def _forget(self) -> None:
        """Drop every recorded graph, and what is known of the roaming context's state."""
        while self._buckets:
            self._drop(self._buckets.popitem()[1])
        self._current = None

    def _drop(self, bucket: _Bucket | None) -> None:
        if bucket is not None:
            self._device.destroy_graph(bucket.graph)

    def _bytes(self, tensor: TensorSpec, sizes: Sizes) -> Array:
        host = self._buffers[tensor.name].host
        if host is None:
            raise BackendError(f"{tensor.name} has no pinned memory: the lane was closed")
        return host[: prod(shape_of(tensor, sizes)) * np.dtype(tensor.dtype).itemsize]

    def _pinned(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        host = self._buffers[name].host
        if host is None:
            raise BackendError(f"{name} has no pinned memory: the lane was closed")
        return host[: prod(shape) * dtype.itemsize].view(dtype).reshape(shape)

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise BackendError(f"{what} failed: {self._failure() or 'the library gave no reason'}")
