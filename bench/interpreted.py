"""A device without a GPU: its memory is the host's, its kernels are this project's own in Triton's interpreter.

It shows that what launches kernels works, and measures nothing. Triton interprets where TRITON_INTERPRET=1 was set
before it was imported.
"""

from __future__ import annotations

import os
import re
import threading
import time
from functools import partial
from typing import Any

import numpy as np

from ..export import kernels as compiled
from ..runtime.backends.fake import FakeDevice
from ..runtime.errors import InputError
from ..runtime.gallery.cuda.kernels import ScanPrecision

_TYPES = {
    "*i8": np.int8,
    "*fp16": np.float16,
    "*u8": np.uint8,
    "*i32": np.int32,
    "*i64": np.int64,
    "*fp32": np.float32,
    "*fp64": np.float64,
}
_INTERPRETER = threading.Lock()  # it keeps the grid of the launch that runs in a variable of the process


def interpreted_kernels(precision: ScanPrecision, width: int, pooling: str) -> dict[str, Any]:
    """What a `FakeDevice` runs under each kernel's name: Triton's kernels, interpreted."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise InputError("TRITON_INTERPRET must be 1 before Triton is imported, to interpret its kernels")
    import torch

    def run(job: Any, device: FakeDevice, blocks: int, *arguments: Any) -> None:
        given = [
            torch.from_numpy(device.array(value, _TYPES[kind])) if kind in _TYPES else value
            for value, kind in zip(arguments, job.types.values(), strict=True)
        ]
        with _INTERPRETER:
            job.function[(blocks,)](*given, **job.constants)

    return {name: partial(run, job) for name, job in compiled._jobs(precision, width, pooling).items()}


class InterpretedDevice(FakeDevice):
    """The part of `TimedDevice` that searches are timed with, on the host.

    Args:
        kernels: as of `FakeDevice`.
    """

    def __init__(self, kernels: dict[str, Any]) -> None:
        super().__init__(kernels, 1 << 34)
        self.timing = False
        self._recorded: list[tuple[str, float]] = []

    def launch_kernel(self, kernel: Any, blocks: int, threads: int, addresses: Any, numbers: Any, stream: int) -> None:
        """See `Device.launch_kernel`."""
        before = time.perf_counter()
        super().launch_kernel(kernel, blocks, threads, addresses, numbers, stream)
        if self.timing:
            self.synchronize(stream)
            name = re.sub(r"_(\d+|float\d+|fixed16)$", "", kernel)  # as in the compiled code, which leaves the kind out
            self._recorded.append((name, (time.perf_counter() - before) * 1e3))

    def prepare(self, launches: int) -> None:
        """Nothing to prepare."""

    def flush(self) -> None:
        """No cache of a GPU to flush."""

    def milliseconds(self) -> list[tuple[str, float]]:
        """Kernel and time of every launch since this was last asked."""
        found, self._recorded = self._recorded, []
        return found
