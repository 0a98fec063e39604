"""Inner products of stored gallery vectors with a query, reduced by a maximum: two kernels, one result.

The gallery is int8. A query has one int8 plane, or two: `q ~ t (254 high + low)`, as precise as int16, so that the
gallery's rounding alone decides how wide an interval is. A second plane doubles the arithmetic and reads nothing more.
Which to use is chosen on real queries when a gallery is prepared (prepare.py): without the axes which that measures,
a certified top 10 of 4,000 demo scenes at 256-d rescored 3,526 rows with one plane, and 116 with two.

They serve where the compiled search (compiled.py) was not built, and galleries without a fine copy. `onnxruntime` runs
MatMulInteger (with AMX, VNNI, AVX2 or NEON, as the machine has); `numpy` needs nothing else. Both compute the same
integers, so the result does not depend on the kernel. A call uses one thread; `Pool` spreads blocks over threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

WIDE = 64  # query vectors from which on a scan is bound by arithmetic, not by reading codes

KernelName = Literal["onnxruntime", "numpy"]
Over = Literal["row", "query"]


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
