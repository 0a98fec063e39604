"""The kernels that multiply matrices with a library: numpy's BLAS and onnxruntime's MatMulInteger."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError
from ...onnx_session import open_session
from .base import KernelName, Over, PackedQueries
from .blas import product
from .layout import OFFSET, PLANE, stored_width
from .matmul_model import scan_model

_EXACT_PIECE = 512  # 512 * 128 * 127 < 2^24: float32 sums of that many products of codes are exact integers


class _MatrixKernel:
    """What kernels that multiply matrices share: the queries' planes side by side as columns."""

    block_bytes = 8 << 20  # its products, 8,192 vectors x 24 columns, still fit in L2

    def pack(self, planes: NDArray[np.int8], starts: NDArray[np.int64], over: Over) -> PackedQueries:
        """See Kernel; laid: int8 [S, planes x Q], the high plane's columns first."""
        count, _, dim = planes.shape
        columns = np.zeros((stored_width(dim), planes.shape[0] * planes.shape[1]), np.int8)
        columns[:dim] = planes.reshape(-1, dim).T
        return PackedQueries(count, starts, over, columns)

    def products(self, rows: Sequence[NDArray[np.floating]], query: NDArray[np.float32]) -> NDArray[np.float32]:
        """See Kernel."""
        return np.concatenate([product(row.astype(np.float32, copy=False), query.T) for row in rows])

    def roundings(self, dim: int) -> int:
        """See Kernel: BLAS may add the terms in any order."""
        return dim


class NumpyKernel(_MatrixKernel):
    """float32 BLAS on exact small integers, in pieces whose sums float32 holds exactly."""

    name: KernelName = "numpy"

    def maxima(self, stored: NDArray[np.uint8], starts: NDArray[np.int64], query: PackedQueries) -> NDArray[np.float32]:
        """See Kernel."""
        products = self._products(stored, query)
        if query.over == "row":
            return np.maximum.reduceat(products, starts[:-1], axis=0)
        return np.maximum.reduceat(products, query.starts[:-1], axis=1)

    def _products(self, stored: NDArray[np.uint8], query: PackedQueries) -> NDArray[np.float32]:
        columns: NDArray[np.int8] = query.laid
        total = np.zeros((len(stored), columns.shape[1]), np.int32)
        for begin in range(0, stored.shape[1], _EXACT_PIECE):
            piece = slice(begin, begin + _EXACT_PIECE)
            codes = stored[:, piece].astype(np.float32) - OFFSET
            total += product(codes, columns[piece].astype(np.float32)).astype(np.int32)
        sums = total.astype(np.float32)
        if query.planes == 1:
            return sums
        high, low = np.split(sums, 2, axis=1)
        return high * np.float32(PLANE) + low


class OnnxruntimeKernel(_MatrixKernel):
    """MatMulInteger on one thread; refused where the CPU's instructions saturate (AVX2 without VNNI)."""

    name: KernelName = "onnxruntime"

    def __init__(self) -> None:
        self._process = os.getpid()  # a session's locks may be held by a thread that a forked process does not have
        self._after_fork = NumpyKernel()
        self._sessions: dict[tuple[int, int | None], Any] = {
            (planes, axis): open_session(
                scan_model(axis, PLANE if planes == 2 else None),
                threads=1,
                purpose="the onnxruntime scan",
                instead="use the numpy scan",
            )
            for planes in (1, 2)
            for axis in (None, 1, 2)
        }
        # onnxruntime documents that U8S8 saturates at int16 on AVX2 without VNNI; these values would.
        query = self.pack(np.full((1, 1, 64), 127, np.int8), np.array([0, 1]), "row")
        worst = self._run(None, np.full((1, 1, 64), 255, np.uint8), query)
        if int(worst[0, 0, 0]) != (255 - OFFSET) * 127 * 64:
            raise BackendError("onnxruntime's integer products saturate on this CPU; use the numpy scan")

    def maxima(self, stored: NDArray[np.uint8], starts: NDArray[np.int64], query: PackedQueries) -> NDArray[np.float32]:
        """See Kernel."""
        if os.getpid() != self._process:
            return self._after_fork.maxima(stored, starts, query)
        if query.over == "row":
            lengths = np.diff(starts)
            if (lengths == lengths[0]).all():
                return self._run(1, stored.reshape(len(lengths), lengths[0], -1), query)
            products = self._run(None, stored[None], query)[0]  # [V, Q]
            return np.maximum.reduceat(products, starts[:-1], axis=0)
        if len(query.starts) == 2:
            over_one: NDArray[np.float32] = self._run(2, stored[None], query)[0][:, None]
            return over_one
        return np.maximum.reduceat(self._run(None, stored[None], query)[0], query.starts[:-1], axis=1)

    def _run(self, axis: int | None, vectors: NDArray[np.uint8], query: PackedQueries) -> NDArray[np.float32]:
        feeds = {"vectors": vectors, "query": query.laid}
        out: NDArray[np.float32] = self._sessions[query.planes, axis].run(None, feeds)[0]
        return out
