"""The fine copy as fixed-point numbers of 16 bits, whose upper bytes are the int8 codes: two bytes a number in all.

A row's numbers are `scale / 256 * n` with integers n of at most 127 * 256 in size; n = 256 code + low. The scale has 8
significant bits and n has 16, so each number is a float32 exactly, whatever computes it. A row's largest number is
rounded away from zero, the others to the nearest: so numbers that were rounded once have the same scale again, and
rounding them changes nothing.

Half a unit is at most 1/65,000 of the row's largest number. float16 has 11 significant bits, so of the largest numbers,
which decide a maximum, it keeps 1/4,096.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..kernels.layout import OFFSET
from .quantize import LEVELS

UNITS = 256  # of a code
_MIDDLE = 128  # of the lower byte
_SIGNIFICANT = 256.0  # bits of a scale, as the number that they count up to
_LEAST = 2.0**-100  # scale, so that a unit is no subnormal float32


def round_to_fixed(
    vectors: NDArray[np.floating], starts: NDArray[np.int64]
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Round rows' vectors [V, D], none of the rows empty: the integers [V, D], and the scale of each row [G]."""
    rows = len(starts) - 1
    integers = np.zeros(vectors.shape, np.int16)
    if rows == 0:
        return integers, np.zeros(0, np.float32)
    peak = np.maximum.reduceat(np.abs(vectors).max(axis=1, initial=0), starts[:-1]).astype(np.float64)
    mantissa, exponent = np.frexp(peak / LEVELS)
    scale = np.ldexp(np.ceil(mantissa * _SIGNIFICANT) / _SIGNIFICANT, exponent)
    scale = np.where(peak > 0, np.maximum(scale, _LEAST), 0)
    row_of = np.repeat(np.arange(rows), np.diff(starts))
    for begin in range(0, len(vectors), 4096):  # float64 copies of a piece at a time
        piece = slice(begin, begin + 4096)
        size = np.abs(vectors[piece]).astype(np.float64)
        unit, most = (scale / UNITS)[row_of[piece], None], peak[row_of[piece], None]
        ratio = np.divide(size, unit, out=np.zeros_like(size), where=unit > 0)
        count = np.where(size == most, np.ceil(ratio), np.rint(ratio))
        integers[piece] = np.copysign(count, vectors[piece])
    return integers, scale.astype(np.float32)


def split_bytes(integers: NDArray[np.int16]) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
    """The codes, which are the nearest multiples of 256, and what is left, as it is stored: with 128 added."""
    codes = (integers.astype(np.int32) + _MIDDLE) // UNITS
    return codes.astype(np.int8), (integers - codes * UNITS + _MIDDLE).astype(np.uint8)


def join_bytes(stored: NDArray[np.uint8], low: NDArray[np.uint8], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Numbers [V, D] of stored codes and the stored bytes below them, given each vector's scale [V]."""
    integers = (stored.astype(np.int32) - OFFSET) * UNITS + low.astype(np.int32) - _MIDDLE
    return from_fixed(integers, scale)


def from_fixed(integers: NDArray[np.integer], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Numbers [V, D] of integers, given each vector's scale [V]."""
    unit = scale.astype(np.float32) / np.float32(UNITS)
    return integers.astype(np.float32) * unit[:, None]
