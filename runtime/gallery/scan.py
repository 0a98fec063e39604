"""Inner products of stored gallery vectors with a query, reduced by a maximum: two kernels, one result.

The gallery is int8. The query has two int8 planes, `q ~ t (254 high + low)`: as precise as int16, so that the gallery's
rounding alone decides how wide an interval is, at the bytes and nearly the time of one (the scan is bound by what it
reads). Measured on 4,000 demo scenes at 256-d, a certified top 10 rescored 3,526 rows with one plane and 116 with two.

`onnxruntime` runs MatMulInteger (AMX, VNNI, AVX2, NEON as the machine has) and `numpy` needs nothing else. Both compute
the same integers, so which one ran never shows in a result. A call uses one thread; `Pool` spreads blocks over threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, InputError
from .matmul_model import scan_model
from .quantize import OFFSET, padded_width

KernelName = Literal["onnxruntime", "numpy"]
MAX_DIM = 32768  # (255 + 128) * 127 * 32768 < 2^31: an int32 cannot overflow
PLANE = 254  # a step of the high plane in steps of the low one, which reaches 127 of them to each side
_EXACT_PIECE = 512  # 512 * 128 * 127 < 2^24: float32 sums of that many products of codes are exact integers


@dataclass(frozen=True)
class PackedQueries:
    """The vectors of some queries, ready to be multiplied.

    Attributes:
        codes: int8 [S, 2 Q], columns are the query vectors' high planes, then their low ones, padded with zeros to the
            stored width.
        starts: int64 [queries + 1]; query i is columns starts[i]:starts[i + 1].
    """

    codes: NDArray[np.int8]
    starts: NDArray[np.int64]


def pack_queries(planes: NDArray[np.int8], starts: NDArray[np.int64]) -> PackedQueries:
    """Pack the planes [2, Q, D] of consecutive queries, none empty."""
    _, count, dim = planes.shape
    packed = np.zeros((padded_width(dim), 2 * count), np.int8)
    packed[:dim, :count] = planes[0].T
    packed[:dim, count:] = planes[1].T
    return PackedQueries(packed, starts)


class Kernel(Protocol):
    """Products `254 x high + low` of uint8 gallery vectors (codes + 128) with both planes of query vectors.

    A product is computed in integers and rounded to float32 at most three times.
    """

    name: KernelName

    def max_over_row(
        self, stored: NDArray[np.uint8], starts: NDArray[np.int64], query: PackedQueries
    ) -> NDArray[np.float32]:
        """float32 [rows, Q]: for each query vector the largest product over each row's vectors.

        stored: [V, S]; row i is stored[starts[i]:starts[i + 1]], none empty.
        """

    def max_over_query(self, stored: NDArray[np.uint8], query: PackedQueries) -> NDArray[np.float32]:
        """float32 [V, queries]: for each gallery vector the largest product over each query's vectors."""


class NumpyKernel:
    """float32 BLAS on exact small integers, in pieces whose sums float32 holds exactly."""

    name: KernelName = "numpy"

    def max_over_row(
        self, stored: NDArray[np.uint8], starts: NDArray[np.int64], query: PackedQueries
    ) -> NDArray[np.float32]:
        """See Kernel."""
        return np.maximum.reduceat(self._products(stored, query.codes), starts[:-1], axis=0)

    def max_over_query(self, stored: NDArray[np.uint8], query: PackedQueries) -> NDArray[np.float32]:
        """See Kernel."""
        return np.maximum.reduceat(self._products(stored, query.codes), query.starts[:-1], axis=1)

    def _products(self, stored: NDArray[np.uint8], query: NDArray[np.int8]) -> NDArray[np.float32]:
        total = np.zeros((len(stored), query.shape[1]), np.int32)
        for begin in range(0, stored.shape[1], _EXACT_PIECE):
            piece = slice(begin, begin + _EXACT_PIECE)
            codes = stored[:, piece].astype(np.float32) - OFFSET
            total += (codes @ query[piece].astype(np.float32)).astype(np.int32)
        high, low = np.split(total.astype(np.float32), 2, axis=1)
        return high * np.float32(PLANE) + low


class OnnxruntimeKernel:
    """MatMulInteger on one thread; refused where the CPU's instructions saturate (AVX2 without VNNI)."""

    name: KernelName = "onnxruntime"

    def __init__(self) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendError("the onnxruntime scan needs onnxruntime: pip install 'chan-rt[cpu]'") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._sessions: dict[int | None, Any] = {
            axis: onnxruntime.InferenceSession(scan_model(axis, PLANE), options, providers=["CPUExecutionProvider"])
            for axis in (None, 1, 2)
        }
        # onnxruntime documents that U8S8 saturates at int16 on AVX2 without VNNI; these values would.
        worst = self._run(
            None, np.full((1, 1, 64), 255, np.uint8), np.repeat(np.array([[0, 127]], np.int8), 64, axis=0)
        )
        if int(worst[0, 0, 0]) != (255 - OFFSET) * 127 * 64:
            raise BackendError("onnxruntime's integer products saturate on this CPU; use the numpy scan")

    def max_over_row(
        self, stored: NDArray[np.uint8], starts: NDArray[np.int64], query: PackedQueries
    ) -> NDArray[np.float32]:
        """See Kernel."""
        lengths = np.diff(starts)
        if (lengths == lengths[0]).all():
            return self._run(1, stored.reshape(len(lengths), lengths[0], -1), query.codes)
        products = self._run(None, stored[None], query.codes)[0]  # [V, Q]
        return np.maximum.reduceat(products, starts[:-1], axis=0)

    def max_over_query(self, stored: NDArray[np.uint8], query: PackedQueries) -> NDArray[np.float32]:
        """See Kernel."""
        if len(query.starts) == 2:
            over_one: NDArray[np.float32] = self._run(2, stored[None], query.codes)[0][:, None]
            return over_one
        return np.maximum.reduceat(self._run(None, stored[None], query.codes)[0], query.starts[:-1], axis=1)

    def _run(self, axis: int | None, vectors: NDArray[np.uint8], query: NDArray[np.int8]) -> NDArray[np.float32]:
        out: NDArray[np.float32] = self._sessions[axis].run(None, {"vectors": vectors, "query": query})[0]
        return out


_KERNELS: dict[KernelName, Callable[[], Kernel]] = {"onnxruntime": OnnxruntimeKernel, "numpy": NumpyKernel}


@cache
def open_kernel(name: KernelName | Literal["auto"] = "auto") -> Kernel:
    """The named kernel; `auto` is onnxruntime where it is installed and exact, otherwise numpy.

    Raises:
        BackendError: why the named kernel does not work here.
        InputError: there is no kernel of that name.
    """
    if name == "auto":
        try:
            return OnnxruntimeKernel()
        except BackendError:
            return NumpyKernel()
    if name not in _KERNELS:
        raise InputError(f"scan must be one of auto, {', '.join(_KERNELS)}, got {name!r}")
    return _KERNELS[name]()


class Pool:
    """Runs blocks of work on a fixed number of threads; with one thread, in the caller's."""

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise InputError(f"threads must be positive, got {threads}")
        self.threads = threads or os.cpu_count() or 1
        self._executor = ThreadPoolExecutor(self.threads, "chan-scan") if self.threads > 1 else None

    def run(self, tasks: Iterable[Callable[[], None]]) -> None:
        """Run every task; the first error is raised once all have ended."""
        if self._executor is None:
            for task in tasks:
                task()
            return
        futures = [self._executor.submit(task) for task in tasks]
        for future in futures:
            future.exception()
        for future in futures:
            future.result()

    def close(self) -> None:
        """Let the threads end."""
        if self._executor is not None:
            self._executor.shutdown()
