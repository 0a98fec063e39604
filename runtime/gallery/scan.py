"""Inner products of stored gallery vectors with a query, reduced by a maximum: three kernels, one result.

The gallery is int8. A query has one int8 plane, or two: `q ~ t (254 high + low)`, as precise as int16, so that the
gallery's rounding alone decides how wide an interval is. A second plane doubles the arithmetic and reads nothing more.
Which to use is chosen on real queries when a gallery is prepared (fast.py): without the axes that preparing measures,
a certified top 10 of 4,000 demo scenes at 256-d rescored 3,526 rows with one plane, and 116 with two.

`vnni` is compiled for this scan and this CPU; `onnxruntime` runs MatMulInteger (AMX, VNNI, AVX2, NEON as the machine
has); `numpy` needs nothing else. All compute the same integers, so which one ran never shows in a result. A call uses
one thread; `Pool` spreads blocks over threads.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, InputError
from .blas import product
from .matmul_model import scan_model
from .quantize import OFFSET, padded_width
from .vnni import SHAPES, Code

KernelName = Literal["vnni", "onnxruntime", "numpy"]
Over = Literal["row", "query"]
MAX_DIM = 32768  # (255 + 128) * 127 * 32768 < 2^31: an int32 cannot overflow
PLANE = 254  # a step of the high plane in steps of the low one, which reaches 127 of them to each side
_EXACT_PIECE = 512  # 512 * 128 * 127 < 2^24: float32 sums of that many products of codes are exact integers


@dataclass(frozen=True)
class PackedQueries:
    """The vectors of some queries, laid out as one kernel reads them.

    Attributes:
        planes: 1 or 2.
        starts: int64 [queries + 1]; query i is vectors starts[i]:starts[i + 1].
        over: what maxima are taken over: the vectors of a gallery's `row`, or of a `query`.
        laid: the kernel's own arrays.
    """

    planes: int
    starts: NDArray[np.int64]
    over: Over
    laid: Any


class Kernel(Protocol):
    """Products of uint8 gallery vectors (codes + 128) with query vectors, reduced.

    A product is `high`, or `254 high + low`, and float32: both are integer sums, rounded, and so are their multiple and
    sum.
    """

    name: KernelName
    block_bytes: int  # of codes that a call is best given, where the scan is bound by reading them

    def pack(self, planes: NDArray[np.int8], starts: NDArray[np.int64], over: Over) -> PackedQueries:
        """Lay out the planes [1 or 2, Q, D] of consecutive queries, none empty."""

    def maxima(self, stored: NDArray[np.uint8], starts: NDArray[np.int64], query: PackedQueries) -> NDArray[np.float32]:
        """The largest products over each row's vectors: [rows, Q]; or over each query's: [V, queries].

        stored: [V, S]; row i is stored[starts[i]:starts[i + 1]], none empty.
        """

    def products(self, rows: Sequence[NDArray[np.floating]], query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Inner products in float32 of rows' fine copies [L_i, D] with a query's vectors [Q, D]: [sum of L_i, Q]."""

    def roundings(self, dim: int) -> int:
        """How many roundings touch any one term of an inner product of `products`, at most."""


class _MatrixKernel:
    """What kernels that multiply matrices share: the queries' planes side by side as columns."""

    block_bytes = 8 << 20  # its products, 8,192 vectors x 24 columns, still fit in L2

    def pack(self, planes: NDArray[np.int8], starts: NDArray[np.int64], over: Over) -> PackedQueries:
        """See Kernel; laid: int8 [S, planes x Q], the high plane's columns first."""
        count, _, dim = planes.shape
        columns = np.zeros((padded_width(dim), planes.shape[0] * planes.shape[1]), np.int8)
        columns[:dim] = planes.reshape(-1, dim).T
        return PackedQueries(count, starts, over, columns)

    def products(self, rows: Sequence[NDArray[np.floating]], query: NDArray[np.float32]) -> NDArray[np.float32]:
        """See Kernel."""
        return np.concatenate([product(row.astype(np.float32, copy=False), query.T) for row in rows])

    def roundings(self, dim: int) -> int:
        """See Kernel: BLAS adds up in what order it likes."""
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
            total += (codes @ columns[piece].astype(np.float32)).astype(np.int32)
        sums = total.astype(np.float32)
        if query.planes == 1:
            return sums
        high, low = np.split(sums, 2, axis=1)
        return high * np.float32(PLANE) + low


class OnnxruntimeKernel(_MatrixKernel):
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
        self._sessions: dict[tuple[int, int | None], Any] = {
            (planes, axis): onnxruntime.InferenceSession(
                scan_model(axis, PLANE if planes == 2 else None), options, providers=["CPUExecutionProvider"]
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


class VnniKernel:
    """vpdpbusd on one thread, written for this scan (vnni.py)."""

    name: KernelName = "vnni"
    block_bytes = 64 << 20  # no product is written out

    def __init__(self, lanes: int | None = None) -> None:
        self._code = Code(PLANE, lanes)

    def pack(self, planes: NDArray[np.int8], starts: NDArray[np.int64], over: Over) -> PackedQueries:
        """See Kernel; laid: the code's shape, the tiles, what their lanes begin with, and each query's first tile."""
        depth, count, dim = planes.shape
        lengths = np.diff(starts) if over == "query" else np.array([count])
        shape = min(
            (shape for shape in SHAPES if shape.planes == depth),
            key=lambda shape: (int(np.sum(-(-lengths // self._code.tile(shape)))) * shape.groups, -shape.groups),
        )
        tile = self._code.tile(shape)
        tile_starts = np.r_[0, np.cumsum(-(-lengths // tile))]
        if over == "row":
            places = np.arange(-(-count // tile) * tile).clip(max=count - 1)
        else:  # lanes past a query's end repeat its last vector: a maximum does not mind
            first = np.repeat(starts[:-1] - tile_starts[:-1] * tile, np.diff(tile_starts) * tile)
            last = np.repeat(starts[1:] - 1, np.diff(tile_starts) * tile)
            places = np.minimum(np.arange(tile_starts[-1] * tile) + first, last)
        padded = np.zeros((depth, len(places), padded_width(dim)), np.int8)
        padded[:, :, :dim] = planes[:, places]
        return PackedQueries(depth, starts, over, (shape, *self._code.tiles(padded, shape), tile_starts))

    def maxima(self, stored: NDArray[np.uint8], starts: NDArray[np.int64], query: PackedQueries) -> NDArray[np.float32]:
        """See Kernel."""
        shape, tiles, begin, tile_starts = query.laid
        if query.over == "row":
            return self._code.over_row(stored, starts, shape, tiles, begin)[:, : query.starts[-1]]
        return self._code.over_query(stored, tile_starts, shape, tiles, begin)

    def products(self, rows: Sequence[NDArray[np.floating]], query: NDArray[np.float32]) -> NDArray[np.float32]:
        """See Kernel."""
        return self._code.products(rows, query)

    def roundings(self, dim: int) -> int:
        """See Kernel: each lane's fused multiply-adds, then halves of the lanes are added."""
        return -(-dim // self._code.lanes) + (self._code.lanes - 1).bit_length()


_KERNELS: dict[KernelName, Callable[[], Kernel]] = {
    "vnni": VnniKernel,
    "onnxruntime": OnnxruntimeKernel,
    "numpy": NumpyKernel,
}


@cache
def open_kernel(name: KernelName | Literal["auto"] = "auto") -> Kernel:
    """The named kernel; `auto` is the first of vnni, onnxruntime and numpy that works on this machine.

    Raises:
        BackendError: why the named kernel does not work here.
        InputError: there is no kernel of that name.
    """
    if name == "auto":
        for kernel in (VnniKernel, OnnxruntimeKernel):
            with suppress(BackendError):
                return kernel()
        return NumpyKernel()
    if name not in _KERNELS:
        raise InputError(f"scan must be one of auto, {', '.join(_KERNELS)}, got {name!r}")
    return _KERNELS[name]()


class Pool:
    """Spreads pieces of work over some threads, the caller's among them; within such a piece, over none but its own."""

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise InputError(f"threads must be positive, got {threads}")
        self.threads = threads or os.cpu_count() or 1
        self._executor = ThreadPoolExecutor(self.threads - 1, "chan-scan") if self.threads > 1 else None

    def run(self, tasks: Iterable[Callable[[], object]]) -> None:
        """Run every task; an error of one is raised once none is running any more, and those not begun are dropped."""
        waiting = deque(tasks)
        futures = []
        if self._executor is not None and not getattr(_thread, "works", False):
            futures = [self._executor.submit(_work, waiting) for _ in range(min(self.threads, len(waiting)) - 1)]
        try:
            _work(waiting)
        finally:
            waiting.clear()
            wait([future for future in futures if not future.cancel()])  # one that never began found nothing to do
        for future in futures:
            if not future.cancelled():
                future.result()

    def close(self) -> None:
        """Let the threads end."""
        if self._executor is not None:
            self._executor.shutdown()


def _work(waiting: deque[Callable[[], object]]) -> None:
    outermost = not getattr(_thread, "works", False)
    _thread.works = True
    try:
        while waiting:
            try:
                task = waiting.popleft()
            except IndexError:  # another thread took the last one
                return
            task()
    finally:
        if outermost:
            _thread.works = False


_thread = threading.local()
