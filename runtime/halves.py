"""What graphs of precision fp16 return, as float32."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .backends import Array
from .gallery.compiled import open_core


def as_float32(array: Array) -> NDArray[np.float32]:
    """An array of float16 or float32 as float32: exactly, and itself where it is that.

    numpy converts one value after another, in 3 nanoseconds each, and those below 2^-14 in 13 (an EPYC of Zen 3). For
    64 images of 36 x 1024 that is longer than a GPU takes to encode them. CPUs have an instruction for it.
    """
    core = open_core()
    if core is None or array.dtype != np.float16 or not array.flags.c_contiguous:
        return array.astype(np.float32, copy=False)
    wide = np.empty(array.shape, np.float32)
    core.widen(array, wide)
    return wide
