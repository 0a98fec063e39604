"""The rows of a gallery as a search reads them: in memory, or mapped from a file (store/segments.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import TensorError
from ..kernels.layout import store_codes
from ..settings import MAX_DIM, Precision
from .bounds import MAX_VALUE, block_norms, gallery_norms, no_axes
from .quantize import quantize


@dataclass(frozen=True)
class Prefix:
    """A row's first principal coordinates at int8, for the fast scan.

    Attributes:
        basis: [D, P], orthonormal columns; a vector's coordinates are `vector @ basis`.
        scale: float32 [n], of each row.
        norms: float32 [n, J + 1], the largest of what bounds.py (1'') needs of each row's vectors.
    """

    basis: NDArray[np.floating]
    scale: NDArray[np.float32]
    norms: NDArray[np.float32]


class Part(Protocol):
    """Consecutive rows of a gallery; row i holds the vectors starts[i] up to starts[i + 1].

    Attributes:
        starts: int64 [n + 1].
        scale, error, norm: float32 [n], see quantize.py; a row's vectors share one scale, so that the maximum over them
            can be taken on integers.
        axes: [D, m], and blocks: float32 [n, J], each row's rounding errors along them, see bounds.py (1').
        prefix: where the fast scan was prepared, otherwise None.
    """

    @property
    def starts(self) -> NDArray[np.int64]:
        """First vector of each row, and the number of vectors."""

    @property
    def scale(self) -> NDArray[np.float32]:
        """Scale of each row's codes."""

    @property
    def error(self) -> NDArray[np.float32]:
        """Largest rounding error of each row's vectors."""

    @property
    def norm(self) -> NDArray[np.float32]:
        """Largest norm of each row's vectors."""

    @property
    def axes(self) -> NDArray[np.floating]:
        """B of (1'), [D, m]."""

    @property
    def blocks(self) -> NDArray[np.float32]:
        """Rounding errors along B's blocks, [n, J]."""

    @property
    def has_fine(self) -> bool:
        """Whether the fine copy is kept."""

    @property
    def prefix(self) -> Prefix | None:
        """The fast scan's basis and scales."""

    def codes(self, first: int, last: int) -> NDArray[np.uint8]:
        """Stored codes of rows first..last - 1: uint8 [vectors, S]."""

    def prefix_codes(self, first: int, last: int) -> NDArray[np.uint8]:
        """Stored codes of the same rows' coordinates: uint8 [vectors, P padded]."""

    def fine(self, row: int) -> NDArray[np.floating]:
        """The fine copy of one row: float32 or float16 [vectors, D]."""


@dataclass(frozen=True)
class ArrayPart:
    """Rows held in memory."""

    starts: NDArray[np.int64]
    scale: NDArray[np.float32]
    error: NDArray[np.float32]
    norm: NDArray[np.float32]
    axes: NDArray[np.floating]
    blocks: NDArray[np.float32]
    stored: NDArray[np.uint8]
    exact: NDArray[np.floating] | None
    prefix: Prefix | None = None
    stored_prefix: NDArray[np.uint8] | None = None

    @property
    def has_fine(self) -> bool:
        """Whether the fine copy is kept."""
        return self.exact is not None

    def codes(self, first: int, last: int) -> NDArray[np.uint8]:
        """Stored codes of rows first..last - 1."""
        return self.stored[self.starts[first] : self.starts[last]]

    def prefix_codes(self, first: int, last: int) -> NDArray[np.uint8]:
        """Stored codes of the rows' coordinates."""
        if self.stored_prefix is None:
            raise LookupError("this part has no prefix")
        return self.stored_prefix[self.starts[first] : self.starts[last]]

    def fine(self, row: int) -> NDArray[np.floating]:
        """The fine copy of one row."""
        if self.exact is None:
            raise LookupError("this part has no fine copy")
        return self.exact[self.starts[row] : self.starts[row + 1]]


def pack_rows(
    vectors: NDArray[np.floating], lengths: NDArray[np.integer], name: str
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Check padded embeddings [N, L, D] with lengths [N] and drop the padding: float32 [V, D] and starts int64 [N + 1].

    Raises:
        TensorError: names the tensor `name`, the rule and the value.
    """
    if vectors.ndim != 3:
        raise TensorError(name, "must have the shape [rows, vectors, D]", vectors.shape)
    if not 1 <= vectors.shape[2] <= MAX_DIM:
        raise TensorError(name, f"D must be from 1 to {MAX_DIM}", vectors.shape[2])
    if lengths.shape != vectors.shape[:1]:
        raise TensorError(name, f"needs one length for each of {len(vectors)} rows", lengths.shape)
    if len(lengths) and not (lengths.min() >= 1 and lengths.max() <= vectors.shape[1]):
        outside = lengths[(lengths < 1) | (lengths > vectors.shape[1])][0]
        raise TensorError(name, f"lengths must be from 1 to {vectors.shape[1]}", int(outside))
    valid = np.arange(vectors.shape[1]) < lengths[:, None]
    packed = np.ascontiguousarray(vectors[valid], np.float32)
    starts = np.r_[0, np.cumsum(lengths, dtype=np.int64)]
    if not (np.abs(packed).max(initial=0) <= MAX_VALUE):  # also false for NaN
        vector, place = np.argwhere(~(np.abs(packed) <= MAX_VALUE))[0]
        row = int(np.searchsorted(starts, vector, side="right")) - 1
        found = f"{packed[vector, place]} in row {row}"
        raise TensorError(name, f"values must be finite and at most {MAX_VALUE:.0e} in size", found)
    return packed, starts


def array_part(
    vectors: NDArray[np.float32],
    starts: NDArray[np.int64],
    precision: Precision = "float32",
    basis: NDArray[np.floating] | None = None,
    axes: NDArray[np.floating] | None = None,
) -> ArrayPart:
    """Quantize packed rows (see `pack_rows`).

    Raises:
        TensorError: a value that float16 cannot hold.

    Args:
        vectors: float32 [V, D].
        starts: int64 [N + 1].
        precision: of the fine copy; the codes' errors are measured against what it holds.
        basis: [D, P] to also make the fast scan's prefix.
        axes: [D, m] to also measure the rounding errors along them.
    """
    exact = None if precision == "none" else vectors.astype(precision, copy=False)
    if exact is not None and not np.isfinite(exact).all():
        raise TensorError("vectors", "must fit float16, or keep the fine copy as float32", float(np.abs(vectors).max()))
    coarse = quantize(vectors if exact is None else exact, starts)
    axes = no_axes(vectors.shape[1]) if axes is None or exact is None else axes
    blocks = errors_along(axes, vectors if exact is None else exact, coarse.codes, coarse.scale, starts)
    prefix = stored_prefix = None
    if basis is not None:
        coordinates = quantize(vectors @ basis.astype(np.float32, copy=False), starts)
        norms = norms_along(basis, coarse.codes, coarse.scale, starts)
        prefix, stored_prefix = Prefix(basis, coordinates.scale, norms), store_codes(coordinates.codes)
    return ArrayPart(
        starts, coarse.scale, coarse.error, coarse.norm, axes, blocks,
        store_codes(coarse.codes), exact, prefix, stored_prefix,
    )  # fmt: skip


def errors_along(
    axes: NDArray[np.floating],
    exact: NDArray[np.floating],
    codes: NDArray[np.integer],
    scale: NDArray[np.float32],
    starts: NDArray[np.int64],
) -> NDArray[np.float32]:
    """For each row the largest ||B_j^T (x - x_hat)|| of its vectors, rounded up to float32: [n, J].

    exact, codes: of the vectors [V, D]; scale: of the rows [n].
    """
    rows = len(starts) - 1
    if rows == 0 or axes.shape[1] == 0:
        return np.zeros((rows, 0), np.float32)
    step = np.repeat(scale.astype(np.float64), np.diff(starts))
    pieces = []
    for begin in range(0, len(exact), 4096):  # float64 copies of a piece at a time
        piece = slice(begin, begin + 4096)
        pieces.append(block_norms(exact[piece].astype(np.float64) - step[piece, None] * codes[piece], axes))
    largest = np.maximum.reduceat(np.concatenate(pieces), starts[:-1], axis=0)
    return np.nextafter(largest.astype(np.float32), np.float32(np.inf))


def norms_along(
    basis: NDArray[np.floating], codes: NDArray[np.integer], scale: NDArray[np.float32], starts: NDArray[np.int64]
) -> NDArray[np.float32]:
    """For each row the largest of what bounds.py (1'') needs of its vectors, rounded up to float32: [n, J + 1].

    codes: of the vectors [V, D]; scale: of the rows [n].
    """
    rows = len(starts) - 1
    step = np.repeat(scale.astype(np.float64), np.diff(starts))
    pieces = [gallery_norms(np.zeros((0, len(basis))), basis)]
    for begin in range(0, len(codes), 4096):  # float64 copies of a piece at a time
        piece = slice(begin, begin + 4096)
        pieces.append(gallery_norms(step[piece, None] * codes[piece], basis))
    norms = np.concatenate(pieces)
    largest = np.maximum.reduceat(norms, starts[:-1], axis=0) if rows else norms
    return np.nextafter(largest.astype(np.float32), np.float32(np.inf))
