"""Symmetric int8 with the exact size of what rounding lost.

A group of vectors shares one scale: `x ~ x_hat = scale * codes`, codes in [-127, 127]. What a proof needs besides is
measured, never estimated: `error >= ||x - x_hat||` and `norm >= ||x_hat||` for every vector of the group, computed in
float64 from the very codes and scale that are stored and rounded up to float32. So the bounds stand whatever the scale
is, for zero, tiny, huge and clipped vectors alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVELS = 127


@dataclass(frozen=True)
class Quantized:
    """Groups of vectors at int8.

    Attributes:
        codes: int8 [V, D].
        scale: float32 [G], one for each group.
        error: float32 [G], no less than ||x - x_hat|| of any vector of the group.
        norm: float32 [G], no less than ||x_hat|| of any vector of the group.
    """

    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    error: NDArray[np.float32]
    norm: NDArray[np.float32]


def quantize(vectors: NDArray[np.floating], starts: NDArray[np.int64], levels: int = LEVELS) -> Quantized:
    """Quantize vectors [V, D] in consecutive groups; group g is vectors[starts[g]:starts[g + 1]], none empty.

    Args:
        vectors: finite values.
        starts: int64 [G + 1], from 0 to V.
        levels: the largest code, at most 127.
    """
    groups = len(starts) - 1
    if groups == 0:
        empty = np.zeros(0, np.float32)
        return Quantized(np.zeros(vectors.shape, np.int8), empty, empty, empty)
    peak = np.abs(vectors).max(axis=1, initial=0).astype(np.float64)
    scale = (np.maximum.reduceat(peak, starts[:-1]) / levels).astype(np.float32)
    codes = np.empty(vectors.shape, np.int8)

    def code(exact: NDArray[np.float64], step: NDArray[np.float64]) -> NDArray[np.float64]:
        ratio = np.divide(exact, step, out=np.zeros_like(exact), where=step > 0)
        return np.clip(np.rint(ratio), -levels, levels)

    return _measured(vectors, codes, scale, starts, code)


def measure(
    vectors: NDArray[np.floating], codes: NDArray[np.int8], scale: NDArray[np.float32], starts: NDArray[np.int64]
) -> Quantized:
    """What codes [V, D] with each group's scale [G] lose of vectors [V, D], whoever chose them."""
    return _measured(vectors, codes, scale, starts)


def _measured(
    vectors: NDArray[np.floating],
    codes: NDArray[np.int8],
    scale: NDArray[np.float32],
    starts: NDArray[np.int64],
    code: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]] | None = None,
) -> Quantized:
    """As `measure`; `code` first writes the codes, from vectors [P, D] and their scales [P, 1]."""
    step = np.repeat(scale.astype(np.float64), np.diff(starts))[:, None]
    error = np.empty(len(vectors), np.float64)
    norm = np.empty(len(vectors), np.float64)
    for begin in range(0, len(vectors), 4096):  # float64 copies of a piece at a time
        piece = slice(begin, begin + 4096)
        exact = vectors[piece].astype(np.float64)
        if code is not None:
            codes[piece] = code(exact, step[piece])
        restored = codes[piece] * step[piece]
        error[piece] = np.sqrt(np.square(exact - restored).sum(axis=1))
        norm[piece] = np.sqrt(np.square(restored).sum(axis=1))
    return Quantized(codes, scale, _upper(error, starts), _upper(norm, starts))


def _upper(values: NDArray[np.float64], starts: NDArray[np.int64]) -> NDArray[np.float32]:
    """The largest value of each group, rounded up: float64's own rounding (a part in 10^12 at most) and float32's."""
    if len(starts) == 1:
        return np.zeros(0, np.float32)
    largest = np.maximum.reduceat(values, starts[:-1]) * (1 + 1e-12)
    with np.errstate(over="ignore"):  # past float32's range the bound is infinite: useless, and still true
        return np.nextafter(largest.astype(np.float32), np.float32(np.inf))
