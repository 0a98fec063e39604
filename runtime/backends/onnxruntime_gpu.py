"""The one door to onnxruntime's sessions on a GPU: none is used in a forked process, none beside one that records."""

from __future__ import annotations

import os
from pathlib import Path

from ..contract import GraphSpec
from ..errors import BackendError, GpuMemoryError
from ..forks import now_and_after_fork
from .base import Array, Feeds
from .buckets import Sizes
from .onnxruntime import OnnxRuntimeBackend
from .recording import SESSIONS

_NO_MEMORY = (
    "Failed to allocate memory for requested buffer",
    "is smaller than requested bytes",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)
# Sessions that a process got by a fork. Freeing one would call CUDA, which does not survive the fork.
_of_parent: list[GpuSession] = []


class GpuSession(OnnxRuntimeBackend):
    """An onnxruntime session on a GPU; see `OnnxRuntimeBackend`.

    A process that was forked from the one that opened it is refused; closing it there does nothing.
    """

    def __init__(
        self,
        name: str,
        file: Path,
        spec: GraphSpec,
        provider: tuple[str, dict[str, str]],
        threads: int | None,
        *,
        extra: str,
    ) -> None:
        self._process = os.getpid()
        with SESSIONS.together():
            super().__init__(name, file, spec, provider, threads, extra=extra)
        now_and_after_fork(self._leave_to_parent)

    def _leave_to_parent(self) -> None:
        if self._process != os.getpid():
            _of_parent.append(self)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """See `Backend.run`; BackendError in a forked process."""
        self._refuse_forked()
        return super().run(feeds)

    def _refuse_forked(self) -> None:
        if self._process != os.getpid():
            raise BackendError(
                f"{self.name} was opened before this process was forked: open it in this process, or start processes "
                "by multiprocessing's method spawn"
            )

    def close(self) -> None:
        """See `Backend.close`."""
        if self._process == os.getpid():
            self._release()

    def _answer(self, sizes: Sizes, feeds: Feeds) -> dict[str, Array]:
        with SESSIONS.together():
            return super()._answer(sizes, feeds)

    def _release(self) -> None:
        with SESSIONS.together():
            super().close()

    def _failure(self, error: Exception) -> BackendError:
        failure = super()._failure(error)
        return GpuMemoryError(str(failure)) if is_short_of_memory(error) else failure


def is_short_of_memory(error: Exception) -> bool:
    """Whether onnxruntime failed because the GPU has too little memory left: its exceptions have no type that says so.

    What is looked for comes from onnxruntime/core/framework/bfc_arena.cc (`BFCArena::Extend`: the allocation failed, or
    it is beyond `gpu_mem_limit`), and from `CudaCall` in onnxruntime/core/providers/cuda/cuda_call.cc, which puts into
    words what failed elsewhere: by cudaGetErrorString for cudaErrorMemoryAllocation, by the name of the status for
    cuBLAS, and by cudnnGetErrorString. cuDNN 9.19 no longer has a text for CUDNN_STATUS_ALLOC_FAILED, cuDNN 8's name.
    NVIDIA's plugin has the same `CudaCall`, but TensorRT says only in its log that memory was short.
    """
    return any(words in str(error) for words in _NO_MEMORY)
