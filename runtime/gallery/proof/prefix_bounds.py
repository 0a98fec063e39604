"""Upper bounds of similarities from a level's codes, in numpy: the right side of (3) in bounds.py.

`weigh` has the weights as float32, and what that loses, in the weights and in their products with bytes, is bounded by
their sizes. So the last norm of a coded vector is not needed. `weigh_integers` has them as integers, as core/query.cpp:
their sums of products are exact in int32. It is what the GPU kernel `weigh` is held against.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...contract import AlignmentConfig
from ..kernels.blas import product
from ..kernels.layout import OFFSET
from .bounds import rounding
from .pooling import Float64Array
from .prefix import Axes, PrefixLevel, SearchPlan, along_axes

_MORE = 1 + 1e-9  # what float64 loses in a sum of squares and in a few operations after it
_UNIT64, _UNIT32 = 2.0**-53, 2.0**-24
_TINY32 = 2.0**-126  # what a float32 number can lose to underflow
_BYTE = 255
LARGEST = 127 * 128 + 63  # integer of two digits of 7 bits; core/query.cpp has the same number


@dataclass(frozen=True, eq=False)
class WeightedQueries:
    """Queries' vectors as factors of the bytes of coded vectors.

    Attributes:
        factors: float32 [width, Q].
        constant: float64 [Q].
    """

    factors: NDArray[np.float32]
    constant: Float64Array

    def above(self, codes: NDArray[np.uint8]) -> Float64Array:
        """No less than each similarity of the queries' vectors with coded vectors [V, width]: [V, Q]."""
        return np.asarray(product(codes.astype(np.float32), self.factors).astype(np.float64) + self.constant)


@dataclass(frozen=True, eq=False)
class IntegerQueries:
    """Queries' vectors as integer factors of the bytes of coded vectors, as core/query.cpp has them.

    Attributes:
        integers: int32 [Q, width], at most LARGEST in size.
        scale: float64 [Q], what they stand for.
        constant: float64 [Q].
    """

    integers: NDArray[np.int32]
    scale: Float64Array
    constant: Float64Array

    def above(self, codes: NDArray[np.uint8]) -> Float64Array:
        """No less than each similarity of the queries' vectors with coded vectors [V, width]: [V, Q]."""
        sums = codes.astype(np.int64) @ self.integers.T.astype(np.int64)
        return np.asarray(sums * self.scale + self.constant)


@dataclass(frozen=True, eq=False)
class _Factors:
    """The right side of (3) for queries' vectors and codes of a level.

    Attributes:
        norms: float64 [Q, J - 1], factors of the bytes of each norm but the last.
        products: float64 [Q, P + K], factors of the codes.
        constant: float64 [Q], what remains, and what float64 loses of the coordinates.
        size: float64 [Q], no less than q.m can be.
        norm: float64 [Q], no less than ||q||.
    """

    norms: Float64Array
    products: Float64Array
    constant: Float64Array
    size: Float64Array
    norm: Float64Array


def weigh(
    vectors: Float64Array,
    plan: SearchPlan,
    largest: float,
    count: Float64Array | int,
    alignment: AlignmentConfig,
) -> WeightedQueries:
    """Factors for queries' vectors [Q, D] and codes of the plan's second level.

    Args:
        vectors: the queries' vectors, float32 numbers.
        plan: how the rows were coded.
        largest: no less than any ||x|| of the rows' vectors.
        count: similarities that are pooled to a score, of each query's vector [Q], or at most.
        alignment: how they are pooled.
    """
    level = plan.second
    assert level is not None
    found = _factors(vectors, plan.axes, level)
    weights = np.zeros((len(vectors), level.width), np.float32)
    weights[:, : level.norms - 1] = found.norms
    weights[:, level.codes] = found.products
    total = _BYTE * (found.norms.sum(axis=1) + np.abs(found.products).sum(axis=1)) * _MORE
    in_float32 = 1.01 * (level.width + 4) * _UNIT32 * total + 512 * level.width * _TINY32
    dim = vectors.shape[1]
    in_float64 = 4 * (dim + level.width) * _UNIT64 * (found.size + total)
    constant = (
        found.constant
        - OFFSET * found.products.sum(axis=1)
        + (in_float32 + in_float64)
        + rounding(found.norm * largest, dim, count, alignment)
    )
    return WeightedQueries(np.ascontiguousarray(weights.T), constant)


def weigh_integers(
    vectors: Float64Array,
    axes: Axes,
    level: PrefixLevel,
    largest: float,
    count: Float64Array | int,
    alignment: AlignmentConfig,
) -> IntegerQueries:
    """Integer factors for queries' vectors [Q, D] and codes of a level; the other arguments are as of `weigh`."""
    found = _factors(vectors, axes, level)
    most = np.maximum(found.norms.max(axis=1, initial=0), np.abs(found.products).max(axis=1, initial=0))
    scale = np.where(most > 0, most / LARGEST * _MORE, 1.0)
    codes = np.rint(found.products / scale[:, None])
    lost = np.sqrt(np.square(found.products - codes * scale[:, None]).sum(axis=1)) * _MORE
    norms = np.concatenate([found.norms, (lost * float(level.norm_step[-1]))[:, None]], axis=1)
    integers = np.zeros((len(vectors), level.width), np.int32)
    integers[:, : level.norms] = np.minimum(np.ceil(norms / scale[:, None] * _MORE), LARGEST)
    integers[:, level.codes] = np.clip(codes, -LARGEST, LARGEST)
    total = _BYTE * scale * np.abs(integers).sum(axis=1) * _MORE
    dim = vectors.shape[1]
    constant = (
        found.constant
        - OFFSET * scale * integers[:, level.codes].sum(axis=1)
        + 4 * (dim + level.width) * _UNIT64 * (found.size + total)
        + rounding(found.norm * largest, dim, count, alignment)
    )
    return IntegerQueries(integers, scale, constant)


def _factors(vectors: Float64Array, axes: Axes, level: PrefixLevel) -> _Factors:
    """The right side of (3) for queries' vectors [Q, D], float32 numbers, and codes of the level."""
    norm = np.sqrt(np.square(vectors).sum(axis=1)) * _MORE  # [Q]
    rotated = along_axes(vectors, axes, multiply=product)
    y, lost = rotated.coordinates, rotated.lost  # B'q, [Q, M]
    f = max(0.0, 1 - axes.deviation)
    along = np.sqrt(np.add.reduceat(np.square(y), level.edges[:-1], axis=1)) * _MORE + lost[:, None]
    norms = np.concatenate([along, rotated.rest[:, None]], axis=1) * level.norm_step[:-1].astype(np.float64) * _MORE
    products = f * y[:, level.coordinate_of] * level.steps.astype(np.float64)
    constant = product(vectors, axes.middle[:, None])[:, 0] + lost * level.size
    return _Factors(norms, products, constant, norm * np.linalg.norm(axes.middle) * _MORE, norm)
