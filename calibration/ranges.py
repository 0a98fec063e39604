"""From streamed activations to clipping ranges.

Only a histogram of each tensor is kept: 4,096 equal bins over [-L, L], where L is a power of two that grows
by merging neighboring bins. Bins of one L nest in those of the next, so the counts do not depend on the order of the
samples: the same data give the same ranges.

Methods (thresholds T of a symmetric clipping range [-T, T]):
    minmax      T = max |x|
    percentile  T = the 99.99th percentile of |x|
    entropy     T with the least KL divergence between the clipped distribution and its 128-level rounding
                (S. Migacz, "8-bit inference with TensorRT", GTC 2017)
    mse         T with the least expected squared error of clipping and rounding to 127 levels a side
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ..runtime.checks import check_choice
from ..runtime.errors import InputError, TensorError

Method = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)

BINS = 4096
LEVELS = 127
PERCENTILE = 99.99
_START_LIMIT = 2.0**-8


class Histogram:
    """Counts of one tensor's values, fed batch by batch.

    Attributes:
        counts: int64 [BINS], equal bins over [-limit, limit].
        limit: half the width of the histogram, a power of two.
        minimum, maximum: the smallest and the largest value.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.limit = _START_LIMIT
        self.minimum = np.inf
        self.maximum = -np.inf

    @property
    def total(self) -> int:
        """Return the number of values that were counted."""
        return int(self.counts.sum())

    def add(self, name: str, values: np.ndarray) -> None:
        """Count every value of an array; TensorError if one is NaN or infinite."""
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise TensorError(name, "every calibration value must be finite", "NaN or infinity")
        while max(-low, high) > self.limit:
            self._grow()
        self.counts += np.histogram(values, BINS, (-self.limit, self.limit))[0]
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)

    def _grow(self) -> None:
        merged = self.counts.reshape(-1, 2).sum(1)
        quarter = BINS // 4
        self.counts = np.concatenate([np.zeros(quarter, np.int64), merged, np.zeros(quarter, np.int64)])
        self.limit *= 2

    def magnitudes(self) -> np.ndarray:
        """Return the counts of |x|, int64 [BINS // 2], equal bins over [0, limit]."""
        half = BINS // 2
        return self.counts[half:] + self.counts[:half][::-1]

    def state(self) -> dict[str, np.ndarray]:
        """Return everything that is needed to continue counting later."""
        return {"counts": self.counts, "scalars": np.array([self.limit, self.minimum, self.maximum])}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Histogram:
        """Restore a histogram from the arrays that `state` returned."""
        histogram = cls()
        histogram.counts = state["counts"].astype(np.int64)
        histogram.limit, histogram.minimum, histogram.maximum = (float(value) for value in state["scalars"])
        return histogram


@dataclass(frozen=True)
class TensorRange:
    """The clipping range chosen for one tensor, and the statistics of its values.

    Attributes:
        low, high: ends of the range; values outside are clipped.
        minimum, maximum: the smallest and the largest value.
        count: number of values.
        clipped: share of the values outside [low, high].
    """

    low: float
    high: float
    minimum: float
    maximum: float
    count: int
    clipped: float

    @property
    def amax(self) -> float:
        """Return the symmetric threshold: the larger magnitude of the two ends."""
        return max(abs(self.low), abs(self.high))


def choose_range(
    name: str, histogram: Histogram, method: Method, bounds: tuple[float, float] | None = None
) -> TensorRange:
    """Choose the clipping range of one tensor.

    Args:
        name: the tensor.
        histogram: its values.
        method: how the range is chosen from them.
        bounds: what no value can exceed (see `calibration.bounds`); they are then the range, whatever the method.

    Raises:
        InputError: the tensor has no values, or only zeros.
    """
    check_choice("method", method, METHODS)
    if not histogram.total:
        raise InputError(f"calibration saw no value of {name}: use more samples")
    largest = max(abs(histogram.minimum), abs(histogram.maximum))
    if largest == 0:
        raise InputError(
            f"calibration saw only zeros in {name}, which give no range: calibrate on pictures that are not blank, or "
            "on region features that are not all zero (chan features makes them)"
        )
    if bounds is not None:
        low, high = min(bounds[0], histogram.minimum), max(bounds[1], histogram.maximum)
        return TensorRange(low, high, histogram.minimum, histogram.maximum, histogram.total, clipped=0.0)
    counts = histogram.magnitudes()
    threshold = largest
    if largest >= (LEVELS + 1) * histogram.limit / len(counts):
        threshold = min(_THRESHOLDS[method](counts, histogram.limit, largest), largest)
    # else all values are so small that bins are coarser than the steps of int8, and cannot show what clipping gains
    edges = np.linspace(0, histogram.limit, len(counts) + 1)
    clipped = float(counts[edges[:-1] >= threshold].sum() / histogram.total) if threshold < largest else 0.0
    return TensorRange(
        low=max(histogram.minimum, -threshold),
        high=min(histogram.maximum, threshold),
        minimum=histogram.minimum,
        maximum=histogram.maximum,
        count=histogram.total,
        clipped=clipped,
    )


def _minmax(counts: np.ndarray, limit: float, largest: float) -> float:
    return largest


def _percentile(counts: np.ndarray, limit: float, largest: float) -> float:
    reached = np.searchsorted(np.cumsum(counts), counts.sum() * PERCENTILE / 100)
    return float((reached + 1) * limit / len(counts))


def _mse(counts: np.ndarray, limit: float, largest: float) -> float:
    centers = (np.arange(len(counts)) + 0.5) * limit / len(counts)
    candidates = largest * np.linspace(0.1, 1.0, 181)
    errors = []
    for threshold in candidates:
        step = threshold / LEVELS
        inside = centers <= threshold
        # rounding's error is uniform within a step; clipping's is the distance to the threshold
        rounding = counts[inside].sum() * step**2 / 12
        clipping = (counts[~inside] * (centers[~inside] - threshold) ** 2).sum()
        errors.append(rounding + clipping)
    return float(candidates[int(np.argmin(errors))])


def _entropy(counts: np.ndarray, limit: float, largest: float) -> float:
    levels = LEVELS + 1
    # Zeros are exact at every threshold. Where they are many (features after a ReLU) they would dominate the rest: on
    # the demo's features this cost 41 points of rsum. As in TensorRT, the first bin gets the count of its neighbor.
    counts = np.concatenate([counts[1:2], counts[1:]])
    last = int(np.nonzero(counts)[0][-1]) + 1
    best, best_divergence = last, np.inf
    for kept in range(levels, last + 1, max(1, (last - levels) // 200)):
        reference = counts[:kept].astype(np.float64)
        if not reference.any():
            continue
        level_of_bin = np.arange(kept) * levels // kept
        occupied = reference > 0
        mass = np.bincount(level_of_bin, weights=reference, minlength=levels)
        width = np.bincount(level_of_bin, weights=occupied, minlength=levels)
        rounded = np.where(occupied, (mass / np.maximum(width, 1))[level_of_bin], 0.0)
        reference[-1] += counts[kept:].sum()
        divergence = _kl(reference, rounded)
        if divergence < best_divergence:
            best, best_divergence = kept, divergence
    return float(best * limit / len(counts))


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    p, q = p / p.sum(), q / q.sum()
    seen = p > 0
    # an empty bin of q would make the divergence infinite; the floor keeps candidates comparable
    return float((p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-9))).sum())


_THRESHOLDS: Mapping[str, Callable[[np.ndarray, float, float], float]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}
