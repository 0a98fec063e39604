"""How int8 codes are stored for the kernels to read, and how a query's two planes add up.

x86 multiplies unsigned bytes by signed ones (vpdpbusd), so a gallery's codes are stored with an offset and a query's
are not. Stored vectors are padded to whole cache lines.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PLANE = 254  # a step of a query's high plane in steps of the low one, which reaches 127 of them to each side
OFFSET = 128  # of stored codes, which are unsigned
LANE = 64  # bytes that a stored vector is padded to a multiple of: a cache line, one 512-bit register


def stored_width(dim: int) -> int:
    """Bytes that one vector of `dim` codes takes when it is stored."""
    return -(-dim // LANE) * LANE


def store_codes(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Codes [V, D] as they are stored, [V, stored_width(D)]: offset by 128 and padded with 128, which means zero."""
    vectors, dim = codes.shape
    stored = np.full((vectors, stored_width(dim)), OFFSET, np.uint8)
    stored[:, :dim] = (codes.view(np.uint8)) ^ np.uint8(OFFSET)  # two's complement: adding 128 flips the sign bit
    return stored


def decoded(stored: NDArray[np.uint8], dim: int, scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """What stored codes [V, S] stand for, [V, dim]; scale: of the vectors, [] or [V, 1]."""
    vectors = stored[:, :dim].astype(np.float32)
    vectors -= OFFSET
    vectors *= scale
    return vectors
