"""Rules of the arrays that callers give and graphs return, each checked and worded in one place: TensorError."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .counts import counted
from .errors import TensorError


def check_unmasked(tensor: str, array: object) -> None:
    """TensorError if an array of `numpy.ma` masks a value: what lies under a mask would be taken for a number."""
    if isinstance(array, np.ma.MaskedArray) and (count := int(np.ma.getmaskarray(array).sum())):
        rule = "must not be masked: leave out or fill what is missing"
        raise TensorError(tensor, rule, counted(count, "masked value"))


def check_array(tensor: str, array: object, dtype: type, shape: tuple[int | str, ...]) -> None:
    """TensorError unless an array is of this type and shape, whose symbols stand for any size but 0."""
    if not isinstance(array, np.ndarray):
        raise TensorError(tensor, "must be a numpy array", type(array).__name__)
    check_unmasked(tensor, array)
    if array.dtype != dtype:
        raise TensorError(tensor, f"dtype must be {np.dtype(dtype).name}", array.dtype)
    wanted = f"[{', '.join(map(str, shape))}]"
    if array.ndim != len(shape):
        raise TensorError(tensor, f"shape must be {wanted}", list(array.shape))
    if 0 in array.shape:
        raise TensorError(tensor, f"shape must be {wanted}, none of them 0", list(array.shape))
    if any(isinstance(size, int) and size != found for size, found in zip(shape, array.shape, strict=True)):
        raise TensorError(tensor, f"shape must be {wanted}", list(array.shape))


def as_lengths(tensor: str, lengths: ArrayLike) -> NDArray[np.int32]:
    """Integers as int32; TensorError where they are none."""
    check_unmasked(tensor, lengths)
    try:
        array = np.asarray(lengths)
    except ValueError as error:  # of lists that differ in length
        raise TensorError(tensor, "must be an array of integers", type(lengths).__name__) from error
    if array.dtype.kind not in "iu":
        raise TensorError(tensor, "dtype must be an integer one", array.dtype)
    # Clipped first: a value past int32 must stay too large, not wrap around.
    return array.clip(-1, np.iinfo(np.int32).max).astype(np.int32)


def check_lengths(tensor: str, lengths: NDArray[np.int32], shape: tuple[int, ...]) -> None:
    """TensorError unless lengths are int32 [B] between 1 and L, for shape (B, L)."""
    batch, width = shape
    if lengths.dtype != np.int32:
        raise TensorError(tensor, "dtype must be int32", lengths.dtype)
    if lengths.shape != (batch,):
        raise TensorError(tensor, f"shape must be [{batch}]", list(lengths.shape))
    wrong = np.flatnonzero((lengths < 1) | (lengths > width))
    if wrong.size:
        raise TensorError(f"{tensor}[{wrong[0]}]", f"must be between 1 and {width}", lengths[wrong[0]])


def check_finite(tensor: str, vectors: NDArray[np.floating], lengths: NDArray[np.int32]) -> None:
    """TensorError that names the first NaN or infinity of vectors [B, L, D]; padding may hold anything."""
    # The sum of squares is finite only if every term is: one pass at the speed of memory where all is well.
    flat = vectors.reshape(-1)
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(np.dot(flat, flat)):
            return
    within = np.arange(vectors.shape[1]) < lengths[:, None]
    bad = ~np.isfinite(vectors) & within[:, :, None]
    if bad.any():
        row, place, feature = (int(index) for index in np.argwhere(bad)[0])
        raise TensorError(f"{tensor}[{row}, {place}, {feature}]", "must be finite", vectors[row, place, feature])
