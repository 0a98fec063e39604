"""Numbers of graphs at precision fp16 from float32 and back: the numbers that numpy makes, and faster.

numpy converts one value after another, in 2 to 3 nanoseconds each, and to float32 those below 2^-14 in 11 (an EPYC of
Zen 3). For 64 images of 36 x 1024 that takes longer than a GPU needs to encode them. CPUs have instructions for it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .backends import Array
from .gallery.compiled import open_core


def as_float32(array: Array) -> NDArray[np.float32]:
    """An array of float16 or float32 as float32; itself where it is that."""
    core = open_core()
    if core is None or array.dtype != np.float16 or not array.flags.c_contiguous:
        return array.astype(np.float32, copy=False)
    wide = np.empty(array.shape, np.float32)
    core.widen(array, wide)
    return wide


def as_dtype(array: NDArray[np.float32], dtype: str) -> Array:
    """An array of float32 as a graph takes it; itself where that is float32. Too large numbers become infinite."""
    core = open_core()
    if core is None or dtype != "float16" or not array.flags.c_contiguous:
        return array.astype(dtype, copy=False)
    half = np.empty(array.shape, np.float16)
    core.narrow(array, half)
    return half
