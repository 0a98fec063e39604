"""Requests whose tensors lie on the GPU already: what such a backend offers, and the checks that all of them make.

A tensor is one of any library that supports DLPack, such as torch and cupy. Work is ordered as DLPack has it: `view`
lets the backend's stream wait for whatever the tensor's library has queued on its own current stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..contract import GraphSpec, Range
from ..errors import TensorError
from .base import check_feeds
from .buckets import Sizes, shape_of
from .device import Device

# Bytes, of where a tensor begins: of what an engine is bound to (ICudaEngine, setTensorAddress), and of everything that
# cudaMalloc returns, which kernels read in wide words.
ALIGNMENT = 256


@runtime_checkable
class OnDevice(Protocol):
    """A backend that takes tensors which lie on its GPU, and leaves its results there.

    Attributes:
        spec: as of `Backend`.
    """

    spec: GraphSpec

    def run_on_device(self, feeds: Mapping[str, Any], out: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """As `Backend.run`, on tensors that lie on this GPU and support DLPack; none visits the host.

        What the caller has queued on its current stream comes first, and when the call returns, the results are there.

        Args:
            feeds: one dense DLPack tensor for each input.
            out: where to write outputs; those left out are allocated and belong to the caller, as DLPack tensors.

        Raises:
            TensorError: as in `run`, or `out` does not fit the outputs, or a tensor does not begin at a multiple of 256
                bytes, as a slice of another may not.
            BackendError: a tensor lies elsewhere or is not dense, or CUDA or the library failed.
        """


@dataclass(frozen=True)
class Located:
    """Where the tensors of a request are.

    Attributes:
        addresses: of each input and output.
        results: each output, the caller's or a new one.
    """

    addresses: Mapping[str, int]
    results: dict[str, Any]


def check_tensors(spec: GraphSpec, ranges: Mapping[str, Range], feeds: Mapping[str, Any]) -> dict[str, int]:
    """`check_feeds` of tensors of any library."""
    shapes = {name: _Shape(name, tensor) for name, tensor in feeds.items()}
    return check_feeds(spec, ranges, shapes)  # type: ignore[arg-type]


def locate(
    device: Device, stream: int, spec: GraphSpec, sizes: Sizes, feeds: Mapping[str, Any], out: Mapping[str, Any]
) -> Located:
    """Find the tensors of a request that `check_tensors` let pass, ready for use on `stream`; make those of outputs.

    Raises:
        TensorError, BackendError: as in `OnDevice.run_on_device`.
    """
    names = [tensor.name for tensor in spec.outputs]
    for name in out:
        if name not in names:
            raise TensorError(name, f"out must have none but the outputs {', '.join(names)}", repr(name))
    addresses: dict[str, int] = {}
    results: dict[str, Any] = {}
    for tensor in spec.inputs:
        addresses[tensor.name], _, _ = _view(device, stream, tensor.name, feeds[tensor.name])
    for tensor in spec.outputs:
        shape, dtype = shape_of(tensor, sizes), np.dtype(tensor.dtype)
        if tensor.name in out:
            addresses[tensor.name], given, kind = _view(device, stream, tensor.name, out[tensor.name])
            if (given, kind) != (shape, dtype):
                raise TensorError(tensor.name, f"out must be {dtype} {list(shape)}", f"{kind} {list(given)}")
            results[tensor.name] = out[tensor.name]
        else:
            addresses[tensor.name], results[tensor.name] = device.export(shape, dtype)
    return Located(addresses, results)


def _view(device: Device, stream: int, name: str, tensor: Any) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
    address, shape, dtype = device.view(tensor, stream)
    if address % ALIGNMENT:
        rule = f"must begin at a multiple of {ALIGNMENT} bytes in the GPU's memory, as a clone() does"
        raise TensorError(name, rule, f"{address % ALIGNMENT} bytes past one")
    return address, shape, dtype


class _Shape:
    """dtype and shape of a tensor of any library, as `check_feeds` reads them of numpy arrays."""

    def __init__(self, name: str, tensor: Any) -> None:
        if not (hasattr(tensor, "shape") and hasattr(tensor, "dtype")):
            raise TensorError(name, "must be a tensor that supports DLPack", type(tensor).__name__)
        self.shape = tuple(tensor.shape)
        self.ndim = len(self.shape)
        try:
            self.dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
        except TypeError as error:
            raise TensorError(name, "dtype must be one that numpy knows", tensor.dtype) from error
