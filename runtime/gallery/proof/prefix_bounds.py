"""Upper bounds of similarities from the second level's codes, in numpy: the right side of (3) in bounds.py.

core/query.cpp has the same weights as integers. Here they are float32, and what that loses, in the weights and in their
products with bytes, is bounded by their sizes. So the last norm of a coded vector is not needed.
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
from .prefix import SearchPlan, along_axes
from .quantize import LEVELS

_MORE = 1 + 1e-9  # what float64 loses in a sum of squares and in a few operations after it
_UNIT64, _UNIT32 = 2.0**-53, 2.0**-24
_TINY32 = 2.0**-126  # what a float32 number can lose to underflow
_BYTE = 255


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
    level, axes = plan.second, plan.axes
    assert level is not None
    dim = vectors.shape[1]
    norm = np.sqrt(np.square(vectors).sum(axis=1)) * _MORE  # [Q]
    rotated = along_axes(vectors, axes, multiply=product)
    y, lost = rotated.coordinates, rotated.lost  # B'q, [Q, M]
    f = max(0.0, 1 - axes.deviation)
    along = np.sqrt(np.add.reduceat(np.square(y), level.edges[:-1], axis=1)) * _MORE + lost[:, None]
    norms = np.concatenate([along, rotated.rest[:, None]], axis=1) * level.norm_step[:-1].astype(np.float64) * _MORE
    products = f * y[:, level.coordinate_of] * level.steps.astype(np.float64)
    weights = np.zeros((len(vectors), level.width), np.float32)
    weights[:, : level.norms - 1] = norms
    weights[:, level.codes] = products
    total = _BYTE * (norms.sum(axis=1) + np.abs(products).sum(axis=1)) * _MORE
    in_float32 = 1.01 * (level.width + 4) * _UNIT32 * total + 512 * level.width * _TINY32
    steps, finer = level.step.astype(np.float64), level.finer.astype(np.float64)
    sizes = (np.linalg.norm(steps) + np.linalg.norm(finer)) * LEVELS * _MORE  # no less than ||s n||, in two digits
    mean = axes.mean.astype(np.float64)
    in_float64 = 4 * (dim + level.width) * _UNIT64 * (norm * np.linalg.norm(mean) * _MORE + total)
    constant = (
        product(vectors, mean[:, None])[:, 0]
        - OFFSET * products.sum(axis=1)
        + (lost * sizes + in_float32 + in_float64)
        + rounding(norm * largest, dim, count, alignment)
    )
    return WeightedQueries(np.ascontiguousarray(weights.T), constant)
