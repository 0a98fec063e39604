"""Matrix products on the caller's thread.

numpy's OpenBLAS wakes threads of its own for larger ones; they go on spinning for a while after, on the very cores that
scan the gallery next.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SINGLE_THREAD = 4 * 65536  # multiplications: OpenBLAS's SMP_THRESHOLD_MIN * GEMM_MULTITHREAD_THRESHOLD


def product(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    """left [N, D] @ right [D, M], for a few rows or columns: in pieces that OpenBLAS computes on one thread."""
    (rows, depth), columns = left.shape, right.shape[1]
    limit = _SINGLE_THREAD - 1
    if rows * depth * columns <= limit:
        return np.asarray(left @ right)
    if rows >= columns:
        step = max(1, limit // (depth * columns))
        return np.concatenate([left[begin : begin + step] @ right for begin in range(0, rows, step)])
    step = max(1, limit // (rows * depth))
    return np.concatenate([left @ right[:, begin : begin + step] for begin in range(0, columns, step)], axis=1)
