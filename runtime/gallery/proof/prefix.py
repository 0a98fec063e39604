"""Coding rows along a gallery's own axes, so that a few bytes of each vector bound all of its similarities.

Theorem (3) of bounds.py is about any mean, any matrix B and any steps. Here they are fitted: the axes to the energy of
the gallery and of its queries together, the steps to the range of each coordinate, and blocks of axes to a spectrum
that falls. A coded vector is one row of bytes, norms first:

    J norms    what is lost of the vector along each block of axes, R of what the axes leave, and the size of the
               codes themselves; unsigned, each times a step of its own, rounded up
    P codes    the first P coordinates, each divided by its step and rounded, plus 128
    K codes    what that leaves of the first K coordinates, each divided by a finer step and rounded, plus 128
    zeros      up to a multiple of 16 bytes

The leading coordinates of vectors and of queries are by far the largest, so what rounding loses of them is much of what
is lost at all: hence their second codes. docs/search-speed.md has what these save.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.layout import OFFSET, stored_width
from .quantize import LEVELS

AXES = 256  # at most: what lies beyond is held by one norm
CODE_AXES = 64  # along which the int8 codes' own rounding is measured
GROUP = 16  # bytes that the kernels multiply at a time
LANES = 16  # rows that lie side by side in a block
_INSIDE = (0, 1, 4, 16)  # where blocks of axes within the codes begin: there the rounding of the codes is lost
_BEYOND = (0, 16, 48)  # and blocks beyond them, from the last coordinate on: there all of the vector is
_AGAIN = 16  # one coordinate has a second code for so many bytes of a level
_ROOM = 1.25  # how much larger than any norm of the sample a norm may become before its row is never excluded
_MORE = 1 + 1e-9  # what float64 loses in a sum of squares and in a few operations after it
_UNIT64 = 2.0**-53
Float64Array = NDArray[np.float64]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Axes:
    """The mean and the axes of a gallery.

    Attributes:
        mean: float32 [D].
        basis: float32 [M, D], B transposed: one axis a row.
        deviation: no less than the spectral norm of B'B - 1.
    """

    mean: FloatArray
    basis: FloatArray
    deviation: float

    @property
    def count(self) -> int:
        """Number of axes (M)."""
        return len(self.basis)

    @cached_property
    def columns(self) -> Float64Array:
        """B: float64 [D, M]."""
        return np.ascontiguousarray(self.basis.T, np.float64)

    @cached_property
    def lost(self) -> float:
        """The most that float64 loses of a vector's coordinates together, as a share of its norm."""
        return float(2 * np.sqrt(self.count) * (self.basis.shape[1] + 8) * _UNIT64 * (1 + self.deviation))

    @cached_property
    def middle(self) -> Float64Array:
        """The mean in float64: [D]."""
        return self.mean.astype(np.float64)

    @cached_property
    def leading(self) -> Float64Array:
        """The first columns of B, along which int8 codes are measured: float64 [D, at most 64]."""
        return np.ascontiguousarray(self.columns[:, :CODE_AXES])


@dataclass(frozen=True, eq=False)
class PrefixLevel:
    """How the first coordinates are coded.

    Attributes:
        edges: where blocks of axes begin, and M; int64 [J - 1].
        step: float32 [P], of each coordinate's codes.
        norm_step: float32 [J], of each norm's codes.
        norm_typical: float32 [J], means of the gallery's norms; they decide how finely queries are coded, and no bound.
        finer: float32 [K], of the second codes of the first K coordinates; plans of earlier versions have none.
    """

    edges: NDArray[np.int64]
    step: FloatArray
    norm_step: FloatArray
    norm_typical: FloatArray
    finer: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def coordinates(self) -> int:
        """Number of coordinates (P)."""
        return len(self.step)

    @property
    def norms(self) -> int:
        """Number of norms (J)."""
        return len(self.norm_step)

    @property
    def again(self) -> int:
        """Number of coordinates with a second code (K)."""
        return len(self.finer)

    @cached_property
    def steps(self) -> FloatArray:
        """The step of each code: float32 [P + K]."""
        return np.concatenate([self.step, self.finer])

    @cached_property
    def size(self) -> float:
        """No less than the norm of any vector's coordinates as they are coded, in one code or in two."""
        steps, finer = self.step.astype(np.float64), self.finer.astype(np.float64)
        return float(np.linalg.norm(steps) + np.linalg.norm(finer)) * LEVELS * _MORE

    @cached_property
    def coordinate_of(self) -> NDArray[np.int64]:
        """Which coordinate each code is of: int64 [P + K]."""
        return np.concatenate([np.arange(self.coordinates), np.arange(self.again)])

    @property
    def codes(self) -> slice:
        """Where the codes are in a coded vector."""
        return slice(self.norms, self.norms + len(self.steps))

    @property
    def width(self) -> int:
        """Bytes of a coded vector."""
        return -(-(self.norms + len(self.steps)) // GROUP) * GROUP


@dataclass(frozen=True, eq=False)
class SearchPlan:
    """How a gallery's rows are coded for search, and its queries; chosen when it is prepared.

    Attributes:
        axes: the gallery's.
        first, second: the levels that are read before the int8 codes; None where these prune no rows.
        digits: of 7 bits, of a query's integers at int8: 1 or 2.
    """

    axes: Axes
    first: PrefixLevel | None
    second: PrefixLevel | None
    digits: int


def fit_axes(vectors: NDArray[np.floating], queries: NDArray[np.floating] | None) -> Axes:
    """Axes for gallery vectors like these [V, D] and queries' vectors like these [Q, D], ordered by falling energy.

    Both second moments count alike, whatever their size; without queries the gallery's counts alone.
    """
    exact = vectors.astype(np.float64)
    moment = np.zeros((exact.shape[1], exact.shape[1]))
    for piece in (exact, None if queries is None else queries.astype(np.float64)):
        if piece is not None and np.trace(own := piece.T @ piece) > 0:
            moment += own / np.trace(own)
    axes = np.linalg.eigh(moment)[1][:, ::-1][:, :AXES].T
    basis = np.ascontiguousarray(axes, np.float32)
    return Axes(exact.mean(axis=0).astype(np.float32), basis, deviation_of(basis))


def deviation_of(basis: FloatArray) -> float:
    """No less than the spectral norm of B'B - 1 for B' = basis [M, D], which Frobenius' norm is."""
    exact = basis.astype(np.float64)
    gram = exact @ exact.T
    rounding = 2 * basis.shape[1] * _UNIT64 * np.square(exact).sum()
    return float(np.linalg.norm(gram - np.eye(len(basis))) * _MORE + rounding)


@dataclass(frozen=True, eq=False)
class Rotated:
    """Vectors along a gallery's axes.

    Attributes:
        coordinates: float64 [V, M], B'(x - mean).
        lost: float64 [V], no less than what float64 loses of the coordinates together.
        rest: float64 [V], no less than R(x - mean) of (3).
    """

    coordinates: Float64Array
    lost: Float64Array
    rest: Float64Array


def rotate(vectors: NDArray[np.floating], axes: Axes, *, allow: bool = True) -> Rotated:
    """Vectors [V, D] along the axes; allow: for what float64 loses. Without it, what is lost counts as 0."""
    return along_axes(vectors.astype(np.float64) - axes.mean.astype(np.float64), axes, allow=allow)


def along_axes(
    centered: Float64Array, axes: Axes, *, allow: bool = True, multiply: Callable[..., Any] = np.matmul
) -> Rotated:
    """Vectors [V, D] from which the mean was taken, or queries' vectors, along the axes; allow: as in `rotate`."""
    coordinates = multiply(centered, axes.columns)
    square = np.square(centered).sum(axis=1)
    held = max(0.0, 1 - axes.deviation) * np.square(coordinates).sum(axis=1)
    unit = allow * axes.lost
    rest = np.sqrt(np.maximum(square - held, 0) + 2 * unit * square) * _MORE
    return Rotated(coordinates, unit * np.sqrt(square) * _MORE, rest)


def level_widths(dim: int) -> tuple[int, int] | None:
    """Bytes of a vector of D numbers at the first and at the second level; None where they would save too little.

    An eighth and a quarter of the int8 codes at D = 1024; docs/search-speed.md has what other widths cost.
    """
    codes = stored_width(dim)
    first, second = max(64, min(128, codes // 8)), max(128, min(256, codes // 4))
    return (first, second) if second < codes else None


def largest_coordinates(vectors: NDArray[np.floating], axes: Axes) -> FloatArray:
    """The largest size of each coordinate of vectors [V, D], to fit steps to: float32 [M]."""
    return np.asarray(np.abs((vectors - axes.mean) @ axes.basis.T).max(axis=0, initial=0), np.float32)


def fit_level(rotated: Rotated, largest: FloatArray, width: int) -> PrefixLevel:
    """A level of that many bytes for vectors like a sample's; largest: of each coordinate of all vectors, [M]."""
    axes = rotated.coordinates.shape[1]
    count, again, edges = 0, 0, [0]
    for count in range(min(width, axes), 0, -1):
        edges = [e for e in _INSIDE if e < count] + [count + e for e in _BEYOND if count + e < axes] + [axes]
        again = min(count, width // _AGAIN)
        if count + again + len(edges) + 1 <= width:
            break
    step = np.maximum(1.05 * largest[:count] / LEVELS, 1e-30).astype(np.float32)
    finer = step[:again] / np.float32(2 * LEVELS)  # rounding leaves at most half a step
    unit = np.ones(len(edges) + 1, np.float32)
    level = PrefixLevel(np.array(edges, np.int64), step, unit, np.zeros(0, np.float32), finer)
    norms = _norms(rotated, _codes(rotated, level), level)
    norm_step = np.maximum(norms.max(axis=0, initial=0) * _ROOM / 255, 1e-30).astype(np.float32)
    return replace(level, norm_step=norm_step, norm_typical=norms.mean(axis=0).astype(np.float32))


def code_vectors(rotated: Rotated, level: PrefixLevel) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Vectors as the level keeps them: uint8 [V, width]; and which of them have a norm too large for its code: [V]."""
    codes = _codes(rotated, level)
    numbers = np.ceil(_norms(rotated, codes, level) / level.norm_step.astype(np.float64) * _MORE)
    stored = np.zeros((len(codes), level.width), np.uint8)
    stored[:, : level.norms] = np.minimum(numbers, 255)
    stored[:, level.codes] = codes + OFFSET
    return stored, np.asarray((numbers > 255).any(axis=1))


def unbounded(rotated: Rotated, stored: NDArray[np.uint8], level: PrefixLevel) -> NDArray[np.bool_]:
    """Which vectors' stored norms [V, width] are less than what their stored codes lose: [V].

    rotated: with no allowance; a writer that allows for what float64 loses stores no less on any machine.
    """
    codes = stored[:, level.codes].astype(np.float64) - OFFSET
    held = stored[:, : level.norms] * level.norm_step.astype(np.float64)
    return np.asarray((_norms(rotated, codes, level) > held).any(axis=1))


def _codes(rotated: Rotated, level: PrefixLevel) -> Float64Array:
    """Codes of the coordinates, [V, P + K]."""
    codes = np.zeros((len(rotated.coordinates), 0))
    for steps in (level.step, level.finer):
        left = rotated.coordinates[:, : len(steps)] - _held(codes, level)[:, : len(steps)]
        codes = np.concatenate([codes, np.clip(np.rint(left / steps.astype(np.float64)), -LEVELS, LEVELS)], axis=1)
    return codes


def _held(codes: Float64Array, level: PrefixLevel) -> Float64Array:
    """What codes stand for [V, P + K], or their first ones [V, P] or [V, 0]: coordinates [V, P]."""
    held = np.zeros((len(codes), level.coordinates))
    for first, steps in ((0, level.step), (level.coordinates, level.finer)):
        if codes.shape[1] > first:
            held[:, : len(steps)] += codes[:, first : first + len(steps)] * steps.astype(np.float64)
    return held


def _norms(rotated: Rotated, codes: Float64Array, level: PrefixLevel) -> Float64Array:
    """The norms of (3) where the coordinates are coded like this [V, P + K]: [V, J]."""
    lost = rotated.coordinates.copy()
    lost[:, : level.coordinates] -= _held(codes, level)
    along = np.sqrt(np.add.reduceat(np.square(lost), level.edges[:-1], axis=1)) * _MORE + rotated.lost[:, None]
    sizes = np.sqrt(np.square(codes).sum(axis=1))[:, None] * _MORE
    return np.concatenate([along, rotated.rest[:, None], sizes], axis=1)


# -- blocks of rows


def block_order(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order in which rows of these lengths lie in blocks: rows of one length together, else as they come."""
    return np.argsort(lengths, kind="stable").astype(np.int64)


def pack_blocks(stored: NDArray[np.uint8], starts: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Coded vectors [V, width] of rows as they lie in blocks of 16 rows: [vectors of all blocks, width * 16].

    A block has as many vectors as its longest row; a shorter row's last vector is repeated, and so is the last row,
    which a maximum does not mind. Four bytes of each row lie side by side.
    """
    width = stored.shape[1]
    lengths = np.diff(starts)
    blocks = [np.zeros((0, width * LANES), np.uint8)]
    for first in range(0, len(order), LANES):
        rows = order[first : first + LANES]
        rows = np.concatenate([rows, np.repeat(rows[-1:], LANES - len(rows))])
        most = int(lengths[rows].max())
        places = starts[rows, None] + np.minimum(np.arange(most), lengths[rows, None] - 1)  # [LANES, most]
        four = stored[places].reshape(LANES, most, width // 4, 4)
        blocks.append(four.transpose(1, 2, 0, 3).reshape(most, width * LANES))
    return np.concatenate(blocks)


def unpack_blocks(packed: NDArray[np.uint8], starts: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.uint8]:
    """What `pack_blocks` packed: [V, width]."""
    width = packed.shape[1] // LANES
    lengths = np.diff(starts)
    stored = np.empty((int(starts[-1]), width), np.uint8)
    begin = 0
    for first in range(0, len(order), LANES):
        rows = order[first : first + LANES]
        most = int(lengths[rows].max())
        block = packed[begin : begin + most].reshape(most, width // 4, LANES, 4).transpose(2, 0, 1, 3)
        for lane, row in enumerate(rows.tolist()):
            stored[starts[row] : starts[row + 1]] = block[lane, : lengths[row]].reshape(lengths[row], width)
        begin += most
    return stored


def packed_vectors(starts: NDArray[np.int64], order: NDArray[np.int64]) -> int:
    """How many vectors the blocks of rows in that order have."""
    lengths = np.diff(starts)[order]
    return int(sum(int(lengths[a:b].max()) for a, b in pairwise([*range(0, len(lengths), LANES), len(lengths)])))


# -- a plan as a file keeps it

_LEVEL = ("edges", "step", "norm_step", "norm_typical", "finer")


def plan_arrays(plan: SearchPlan) -> dict[str, NDArray[Any]]:
    """The arrays of a plan; see `plan_of`."""
    arrays: dict[str, NDArray[Any]] = {"mean": plan.axes.mean, "basis": plan.axes.basis}
    for name, level in (("first", plan.first), ("second", plan.second)):
        if level is not None:
            arrays |= {f"{name}_{key}": getattr(level, key) for key in _LEVEL}
    return arrays


def plan_of(arrays: Mapping[str, NDArray[Any]], dim: int, digits: int) -> SearchPlan:
    """The plan that arrays describe.

    Raises:
        ValueError: an array is missing, or is not what a gallery of this width D can have.
    """
    mean, basis = arrays.get("mean"), arrays.get("basis")
    if mean is None or basis is None or mean.shape != (dim,) or basis.ndim != 2 or basis.shape[1] != dim:
        raise ValueError(f"mean and basis must be [{dim}] and [axes, {dim}]")
    if not 1 <= len(basis) <= min(AXES, dim):
        raise ValueError(f"there must be from 1 to {min(AXES, dim)} axes, got {len(basis)}")
    if any(array.dtype != (np.int64 if name.endswith("edges") else np.float32) for name, array in arrays.items()):
        raise ValueError("edges must be int64 and all else float32")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError("values must be finite")
    axes = Axes(mean, basis, deviation_of(basis))
    levels = [_level_of(arrays, name, len(basis)) for name in ("first", "second")]
    if (levels[0] is None) != (levels[1] is None):
        raise ValueError("there must be both levels or none")
    return SearchPlan(axes, levels[0], levels[1], digits)


def _level_of(arrays: Mapping[str, NDArray[Any]], name: str, axes: int) -> PrefixLevel | None:
    if f"{name}_step" not in arrays:
        return None
    level = PrefixLevel(**{key: arrays.get(f"{name}_{key}", np.zeros(0, np.float32)) for key in _LEVEL})
    edges = level.edges
    if not 1 <= level.coordinates <= axes or len(edges) < 2 or edges[0] != 0 or edges[-1] != axes:
        raise ValueError(f"{name}: blocks must cover the axes, and coordinates be some of them")
    if level.again > level.coordinates or len(level.steps) > AXES:
        raise ValueError(f"{name}: second codes must be of some of the coordinates, and codes at most {AXES}")
    if (np.diff(edges) <= 0).any() or level.norms != len(edges) + 1 or len(level.norm_typical) != level.norms:
        raise ValueError(f"{name}: edges must rise, with a norm for each block and two more")
    if not ((level.steps > 0).all() and (level.norm_step > 0).all() and (level.norm_typical >= 0).all()):
        raise ValueError(f"{name}: steps must be positive")
    return level
