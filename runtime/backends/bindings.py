"""What a run of onnxruntime reads and writes on a GPU, and how a request's tensors come there and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np

from ..contract import GraphSpec
from .base import Array, Feeds
from .buckets import Sizes, shape_of
from .device import Device

# Bytes of the tensors of a request that lie on the GPU, up to which they are copied to and from the memory that a
# recorded graph knows. By arithmetic: 64 images of the published model take 28 MB. Copying 64 MiB takes an H100 some 40
# microseconds at 3.35 TB/s, read and written, and the host as long to hand over ten kernels that were not recorded.
MOST_COPIED = 1 << 26


@dataclass(frozen=True)
class Binding:
    """What a run reads and writes.

    Attributes:
        io, options: of onnxruntime.
        inputs, outputs: its own memory; none where the tensors of a request are bound where they lie.
        graph: the number of its graph; 0 for none.
    """

    io: Any
    options: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    graph: int


class Request(Protocol):
    """The tensors that a caller wants computed on.

    Attributes:
        addresses: where they lie on the device; none for arrays of the host.
        may_copy: whether they may be copied to and from a binding's own memory.
    """

    addresses: Mapping[str, int]
    may_copy: bool

    def send(self, binding: Binding) -> None:
        """Fill a binding's own inputs."""

    def fetch(self, binding: Binding) -> dict[str, Array]:
        """The arrays of the host that are its outputs."""


class HostArrays:
    """Arrays of the host."""

    def __init__(self, feeds: Feeds) -> None:
        self.addresses: Mapping[str, int] = {}
        self.may_copy = True
        self._feeds = feeds

    def send(self, binding: Binding) -> None:
        """See `Request.send`."""
        for name, array in self._feeds.items():
            binding.inputs[name].update_inplace(np.ascontiguousarray(array))

    def fetch(self, binding: Binding) -> dict[str, Array]:
        """See `Request.fetch`."""
        return {name: _own(value) for name, value in binding.outputs.items()}


class DeviceTensors:
    """Tensors that lie on the device, ready for use on `stream` and by the host."""

    def __init__(
        self, memory: Device, stream: int, spec: GraphSpec, sizes: Sizes, addresses: Mapping[str, int]
    ) -> None:
        self.addresses = addresses
        self._memory = memory
        self._stream = stream
        self._bytes = {
            tensor.name: prod(shape_of(tensor, sizes)) * np.dtype(tensor.dtype).itemsize
            for tensor in (*spec.inputs, *spec.outputs)
        }
        self.may_copy = sum(self._bytes.values()) <= MOST_COPIED

    def send(self, binding: Binding) -> None:
        """See `Request.send`."""
        for name, value in binding.inputs.items():
            self._memory.copy(value.data_ptr(), self.addresses[name], self._bytes[name], self._stream)
        self._wait(binding)

    def fetch(self, binding: Binding) -> dict[str, Array]:
        """Fill the tensors; there is nothing for the host."""
        for name, value in binding.outputs.items():
            self._memory.copy(self.addresses[name], value.data_ptr(), self._bytes[name], self._stream)
        self._wait(binding)
        return {}

    def _wait(self, binding: Binding) -> None:
        if binding.inputs:  # otherwise nothing was copied
            self._memory.synchronize(self._stream)


def _own(value: Any) -> Array:
    """An array of what a binding's own output holds; on the CPU `numpy` is a view, which the next call overwrites."""
    array: Array = value.numpy()
    return array.copy() if value.device_name() == "cpu" else array
