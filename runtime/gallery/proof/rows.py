"""The rows of a gallery as a search reads them: in memory, or mapped from a file (store/segments.py)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...counts import counted
from ...errors import TensorError
from ..kernels.layout import store_codes
from ..settings import MAX_DIM, Precision
from .bounds import MAX_VALUE, block_edges, block_norms, gallery_norms, no_axes
from .fixed16 import from_fixed, round_to_fixed, split_bytes
from .pooling import Float64Array
from .prefix import SearchPlan, block_order, code_vectors, pack_blocks, rotate
from .quantize import Quantized, measure, quantize

CODES, FINE, SECOND = 2, 4, 1  # what `Part.check` checks; kernels.h has the same numbers


@dataclass(frozen=True, eq=False)
class PartArrays:
    """The arrays of a part as the compiled search reads them: where they lie, whether their bytes were checked or not.

    Attributes:
        codes: uint8 [V, S].
        fine: [V, D], as it is stored: float32, float16, or uint8, the lower bytes of fixed-point numbers.
        checked: uint8 [n], of each row what `Part.check` has checked.
        measures: float32 [n, 2 J + 1], `blocks` and `norms` side by side; None where search was not prepared.
        first: uint8, the first level's codes in blocks of rows, checked; with `order` int64 [n] and `loose` uint8 [n].
        second: uint8 [V, width], the second level's codes; see prefix.py.
    """

    codes: NDArray[np.uint8]
    fine: NDArray[Any]
    checked: NDArray[np.uint8]
    measures: NDArray[np.float32] | None = None
    first: NDArray[np.uint8] | None = None
    order: NDArray[np.int64] | None = None
    loose: NDArray[np.uint8] | None = None
    second: NDArray[np.uint8] | None = None


class Part(Protocol):
    """Consecutive rows of a gallery; row i holds the vectors starts[i] up to starts[i + 1].

    Attributes:
        starts: int64 [n + 1].
        scale, error, norm: float32 [n], see quantize.py; a row's vectors share one scale, so that the maximum over them
            can be taken on integers.
        plan: how rows were coded along the gallery's axes; None where search was not prepared.
        blocks, norms: float32 [n, J] and [n, J + 1], each row's rounding errors and codes along the plan's axes, see
            bounds.py (1') and (1''); J = 0 without a plan.
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
    def plan(self) -> SearchPlan | None:
        """How the rows were coded along the gallery's axes."""

    @property
    def blocks(self) -> NDArray[np.float32]:
        """Rounding errors along the axes, [n, J]."""

    @property
    def norms(self) -> NDArray[np.float32]:
        """What the codes stand for along the axes, and beyond them, [n, J + 1]."""

    @property
    def has_fine(self) -> bool:
        """Whether the fine copy is kept."""

    def codes(self, first: int, last: int) -> NDArray[np.uint8]:
        """Stored codes of rows first..last - 1: uint8 [vectors, S]."""

    def fine(self, row: int) -> NDArray[np.floating]:
        """The fine copy of one row: float32 or float16 [vectors, D]."""

    def second(self, first: int, last: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The second level's codes of rows first..last - 1 [vectors, width], and which rows they bound; see `plan`."""

    def arrays(self) -> PartArrays:
        """Every array, for the compiled search."""

    def check(self, row: int, what: int) -> None:
        """Make sure that bytes of one row are those that were committed: CODES, FINE, SECOND or a sum of them."""


@dataclass(frozen=True, eq=False)
class ArrayPart:
    """Rows held in memory; `low` is what fixed16 stores of `exact` besides the codes."""

    starts: NDArray[np.int64]
    scale: NDArray[np.float32]
    error: NDArray[np.float32]
    norm: NDArray[np.float32]
    stored: NDArray[np.uint8]
    exact: NDArray[np.floating] | None
    blocks: NDArray[np.float32]
    norms: NDArray[np.float32]
    plan: SearchPlan | None = None
    coded: PrefixCodes | None = None
    low: NDArray[np.uint8] | None = None

    @property
    def has_fine(self) -> bool:
        """Whether the fine copy is kept."""
        return self.exact is not None

    def codes(self, first: int, last: int) -> NDArray[np.uint8]:
        """Stored codes of rows first..last - 1."""
        return self.stored[self.starts[first] : self.starts[last]]

    def fine(self, row: int) -> NDArray[np.floating]:
        """The fine copy of one row."""
        if self.exact is None:
            raise LookupError("this part has no fine copy")
        return self.exact[self.starts[row] : self.starts[row + 1]]

    def second(self, first: int, last: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The second level's codes of rows first..last - 1, and which rows they bound."""
        if self.coded is None:
            raise LookupError("this part has no levels")
        return self.coded.second[self.starts[first] : self.starts[last]], self.coded.loose[first:last] & 2 == 0

    def arrays(self) -> PartArrays:
        """Every array."""
        if self.exact is None:
            raise LookupError("this part has no fine copy")
        fine = self.exact if self.low is None else self.low
        arrays = PartArrays(self.stored, fine, np.full(len(self.scale), CODES | FINE | SECOND, np.uint8))
        if self.plan is not None:
            arrays = replace(arrays, measures=np.concatenate([self.blocks, self.norms], axis=1))
        if self.coded is not None:
            order = block_order(np.diff(self.starts))
            first = pack_blocks(self.coded.first, self.starts, order)
            arrays = replace(arrays, first=first, order=order, loose=self.coded.loose, second=self.coded.second)
        return arrays

    def check(self, row: int, what: int) -> None:
        """Nothing is ever unchecked in memory."""


@dataclass(frozen=True, eq=False)
class PrefixCodes:
    """Rows coded along a gallery's axes.

    Attributes:
        first, second: uint8 [V, width] of each level; see prefix.py.
        loose: uint8 [n], 1 where a norm did not fit its code at the first level, plus 2 at the second.
    """

    first: NDArray[np.uint8]
    second: NDArray[np.uint8]
    loose: NDArray[np.uint8]


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
        raise TensorError(name, f"needs one length for each of {counted(len(vectors), 'row')}", lengths.shape)
    if len(lengths) and not (lengths.min() >= 1 and lengths.max() <= vectors.shape[1]):
        outside = lengths[(lengths < 1) | (lengths > vectors.shape[1])][0]
        raise TensorError(name, f"lengths must be from 1 to {vectors.shape[1]}", int(outside))
    valid = np.arange(vectors.shape[1]) < lengths[:, None]
    packed = np.ascontiguousarray(vectors[valid], np.float32)
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    if not (packed.min(initial=0) >= -MAX_VALUE and packed.max(initial=0) <= MAX_VALUE):  # also false for NaN
        vector, place = np.argwhere(~(np.abs(packed) <= MAX_VALUE))[0]
        row = int(np.searchsorted(starts, vector, side="right")) - 1
        found = f"{packed[vector, place]} in row {row}"
        raise TensorError(name, f"values must be finite and at most {MAX_VALUE:.0e} in size", found)
    return packed, starts


def array_part(
    vectors: NDArray[np.float32],
    starts: NDArray[np.int64],
    precision: Precision = "float32",
    plan: SearchPlan | None = None,
) -> ArrayPart:
    """Quantize packed rows (see `pack_rows`).

    Raises:
        TensorError: a value that float16 cannot hold.

    Args:
        vectors: float32 [V, D].
        starts: int64 [N + 1].
        precision: of the fine copy; the codes' errors are measured against what it holds.
        plan: to also code the rows along the gallery's axes; without a fine copy they are not.
    """
    kept, coarse, low = _coded(vectors, starts, precision)
    exact = None if precision == "none" else kept
    if exact is None:
        plan = None
    axes = no_axes(vectors.shape[1]) if plan is None else plan.axes.leading
    blocks = errors_along(axes, kept, coarse.codes, coarse.scale, starts)
    norms = norms_along(axes, coarse.codes, coarse.scale, starts)
    coded = None if plan is None or exact is None else code_rows(exact, starts, plan)
    stored = store_codes(coarse.codes)
    return ArrayPart(starts, coarse.scale, coarse.error, coarse.norm, stored, exact, blocks, norms, plan, coded, low)


def kept_vectors(vectors: NDArray[np.float32], starts: NDArray[np.int64], precision: Precision) -> NDArray[np.float32]:
    """What a gallery gives back of rows' vectors [V, D], once it holds them; TensorError as from `array_part`."""
    kept, coarse, _ = _coded(vectors, starts, precision)
    if precision != "none":
        return kept.astype(np.float32, copy=False)
    return coarse.codes.astype(np.float32) * np.repeat(coarse.scale, np.diff(starts))[:, None]


def _coded(
    vectors: NDArray[np.float32], starts: NDArray[np.int64], precision: Precision
) -> tuple[NDArray[np.floating], Quantized, NDArray[np.uint8] | None]:
    """The vectors that the codes are measured against, the codes, and the bytes below them at fixed16."""
    if precision == "fixed16":
        integers, scale = round_to_fixed(vectors, starts)
        codes, low = split_bytes(integers)
        kept = from_fixed(integers, np.repeat(scale, np.diff(starts)))
        return kept, measure(kept, codes, scale, starts), low
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused here
        exact = vectors if precision == "none" else vectors.astype(precision, copy=False)
    if not np.isfinite(exact).all():
        raise TensorError("vectors", "must fit float16, or keep the fine copy as float32", float(np.abs(vectors).max()))
    return exact, quantize(exact, starts), None


def code_rows(vectors: NDArray[np.floating], starts: NDArray[np.int64], plan: SearchPlan) -> PrefixCodes | None:
    """Rows' vectors [V, D] as the plan's levels keep them; None if it has no levels."""
    if plan.first is None or plan.second is None:
        return None
    pieces: list[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]] = []
    for begin in range(0, len(vectors), 4096):  # float64 copies of a piece at a time
        rotated = rotate(vectors[begin : begin + 4096], plan.axes)
        first, first_loose = code_vectors(rotated, plan.first)
        second, second_loose = code_vectors(rotated, plan.second)
        pieces.append((first, second, (first_loose | second_loose * 2).astype(np.uint8)))
    if not pieces:
        empty = np.zeros(0, np.uint8)
        return PrefixCodes(empty.reshape(0, plan.first.width), empty.reshape(0, plan.second.width), empty)
    first, second, loose = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
    return PrefixCodes(first, second, np.bitwise_or.reduceat(loose, starts[:-1]))


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
    if basis.shape[1] == 0:
        return np.zeros((rows, 0), np.float32)
    step = np.repeat(scale.astype(np.float64), np.diff(starts))
    pieces = [gallery_norms(np.zeros((0, len(basis))), basis)]
    for begin in range(0, len(codes), 4096):  # float64 copies of a piece at a time
        piece = slice(begin, begin + 4096)
        pieces.append(gallery_norms(step[piece, None] * codes[piece], basis))
    norms = np.concatenate(pieces)
    largest = np.maximum.reduceat(norms, starts[:-1], axis=0) if rows else norms
    return np.nextafter(largest.astype(np.float32), np.float32(np.inf))


def measured(lost: Float64Array, restored: Float64Array, axes: NDArray[np.floating]) -> Float64Array:
    """What a row's measures must bound, of each vector of what codes lose and of what they stand for [V, D].

    Returns [V, 2 J + 3]: the sizes of both, and of both along the axes [D, m], with nothing allowed for float64.
    """
    sizes = [np.linalg.norm(vectors, axis=1)[:, None] for vectors in (lost, restored)]
    edges = block_edges(axes.shape[1])[:-1]
    if edges:
        sizes += [np.sqrt(np.add.reduceat(np.square(vectors @ axes), edges, axis=1)) for vectors in (lost, restored)]
        sizes.append(np.linalg.norm(restored - restored @ axes @ axes.T, axis=1)[:, None])
    return np.concatenate(sizes, axis=1)
