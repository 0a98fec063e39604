"""Scores from similarities, in float64, and how far a score can move when its similarities do.

A row of the gallery and a query make a matrix of similarities, gallery vectors x query vectors. A hard coding takes the
maximum along one side of it and pools what is left along the other (docs/published-model.md):

| gallery of | VHA (per word the best region)  | THA (per region the best word) |
|---|---|---|
| images     | max over the row, pool the query | max over the query, pool the row |
| captions   | max over the query, pool the row | max over the row, pool the query |
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...contract import AlignmentConfig
from ..settings import Kind

Float64Array = NDArray[np.float64]


def pools_query(kind: Kind, alignment: AlignmentConfig) -> bool:
    """Whether the maximum runs over the row's vectors, so that one value for each query vector is left to pool."""
    return (kind == "images") == (alignment.coding == "VHA")


def pool(values: Float64Array, alignment: AlignmentConfig) -> Float64Array:
    """Pool the last axis: [..., n] -> [...]. Source: docs/published-model.md; LSE has no temperature in front."""
    match alignment.pooling:
        case "Max":
            return np.asarray(values.max(axis=-1))
        case "Mean":
            return np.asarray(values.mean(axis=-1))
        case "Sum":
            return np.asarray(values.sum(axis=-1))
    scaled = values / alignment.pooling_temperature
    peak = scaled.max(axis=-1, keepdims=True)
    weights = np.exp(scaled - peak)
    if alignment.pooling == "LSE":
        return np.asarray(np.log(weights.sum(axis=-1)) + peak[..., 0])
    return np.asarray((weights * values).sum(axis=-1) / weights.sum(axis=-1))


def score_change(
    change: Float64Array, count: Float64Array | int, spread: Float64Array | float, alignment: AlignmentConfig
) -> Float64Array:
    """How far the score can move when every pooled similarity moves by at most `change`.

    Args:
        change: >= 0, the most any similarity moves.
        count: how many similarities are pooled.
        spread: largest minus smallest pooled similarity before the move (used by Softmax only).

    Max, Mean and LSE grow with each similarity and grow by c (LSE by c / temperature) when all grow by c, so moving
    each by at most e moves them by at most e (e / temperature); Sum by count * e. These are attained: bounds are tight.

    Softmax, sum_i p_i s_i with p = softmax(s / T), is not monotone. Let s'_i = s_i + d_i, |d_i| <= e, and p' the new
    weights. Then sum p'_i s'_i - sum p_i s_i = sum p'_i d_i + sum (p'_i - p_i) s_i. The first sum is at most e. For the
    second, p'_i / p_i lies within a factor r = exp(2 e / T) from its least to its greatest value; among distributions
    that far apart the total variation is at most (sqrt(r) - 1) / (sqrt(r) + 1) = tanh(e / 2T) (attained by two weights
    in the ratio sqrt(r)), and as p' - p sums to zero it moves the mean of s by at most that times the spread of s.
    """
    match alignment.pooling:
        case "Max" | "Mean":
            return np.asarray(change)
        case "Sum":
            return np.asarray(change * count)
        case "LSE":
            return np.asarray(change / alignment.pooling_temperature)
    return np.asarray(change + spread * np.tanh(change / (2 * alignment.pooling_temperature)))


def pool_groups(
    values: Float64Array, starts: NDArray[np.int64], alignment: AlignmentConfig
) -> tuple[Float64Array, Float64Array]:
    """Pool consecutive groups of rows: values [K, C], group g = rows [starts[g], starts[g + 1]) -> [G, C] each.

    Returns the pooled values and, for Softmax pooling, the spread (largest minus smallest) of each group, otherwise 0.
    """
    lengths = np.diff(starts)
    pooled = np.empty((len(lengths), values.shape[1]))
    spread = np.zeros((len(lengths), values.shape[1]))
    for length in np.unique(lengths):
        groups = np.flatnonzero(lengths == length)
        if len(groups) == len(lengths):
            same = values.reshape(len(lengths), length, -1)
        else:
            same = values[starts[groups][:, None] + np.arange(length)]
        same = np.moveaxis(
            same, 1, 2
        )  # a view: numpy reduces the middle axis along whole rows, not 12 values at a time
        pooled[groups] = pool(same, alignment)
        if alignment.pooling == "Softmax":
            spread[groups] = same.max(axis=-1) - same.min(axis=-1)
    return pooled, spread
