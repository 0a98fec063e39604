"""Matrix products on the caller's thread.

numpy's OpenBLAS wakes threads of its own for larger ones; they go on spinning for a while after, on the very cores that
scan the gallery next.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SINGLE_THREAD = 4 * 65536  # multiplications: OpenBLAS's SMP_THRESHOLD_MIN * GEMM_MULTITHREAD_THRESHOLD


def product(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    """left [N, D] @ right [D, M], in pieces that are computed on one thread.

    So it is also safe in a process that another thread may fork: OpenBLAS's threads hold locks while they work.
    """
    (rows, depth), columns = left.shape, right.shape[1]
    limit = (_SINGLE_THREAD - 1) // max(1, depth)
    if rows * columns <= limit:
        return _product(left, right)
    across = min(columns, isqrt(limit))
    down = min(rows, limit // across)
    across = min(columns, limit // down)
    out = np.empty((rows, columns), np.result_type(left, right))
    for top in range(0, rows, down):
        for begin in range(0, columns, across):
            piece = slice(top, top + down), slice(begin, begin + across)
            out[piece] = _product(left[piece[0]], right[:, piece[1]])
    return out


def _product(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    if 1 in (len(left), right.shape[1]):  # a product with a vector takes threads from 9,216 multiplications on
        return np.asarray(np.einsum("nd,dm->nm", left, right))
    return np.asarray(left @ right)
