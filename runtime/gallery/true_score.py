"""The score that a certified search ranks by: one row against one query on the fine copy, in float64.

Slow and plain where it can be (`true_row`), and a shortcut proven to give the same maxima (`true_rows`): only pairs
that float32 cannot tell from the maximum are multiplied again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..contract import AlignmentConfig
from .pooling import Array, Kind, pool, pools_query


@dataclass(frozen=True)
class TrueRow:
    """One row's true score and the similarities it was pooled from.

    Attributes:
        score: float64.
        maxima: float64 [n], the pooled similarities; of VSA the coding of each region.
        winners: int32 [n], the vector on the other side that reached each maximum, the first where several did; -1
            everywhere for VSA, which has none.
    """

    score: float
    maxima: Array
    winners: NDArray[np.int32]


def inner_products(left: Array, right: Array) -> Array:
    """Row-wise float64 inner products: [P, D] and [P, D] -> [P]; each depends on its own two vectors alone."""
    return np.asarray(np.einsum("pd,pd->p", left, right))


def true_row(fine: NDArray[np.floating], query: NDArray[np.float32], kind: Kind, alignment: AlignmentConfig) -> TrueRow:
    """The score of one row [L, D] and one query [Q, D], every pair multiplied in float64."""
    vectors, other = fine.astype(np.float64), query.astype(np.float64)
    left, right = np.repeat(vectors, len(other), axis=0), np.tile(other, (len(vectors), 1))
    similarities = inner_products(left, right).reshape(len(vectors), len(other))
    if alignment.coding == "VSA":
        if kind == "images":
            return _soft(similarities, other, alignment)
        return _soft(similarities.T, vectors, alignment)
    axis = 0 if pools_query(kind, alignment) else 1
    maxima = similarities.max(axis=axis)
    winners = similarities.argmax(axis=axis).astype(np.int32)
    return TrueRow(float(pool(maxima, alignment)), maxima, winners)


def true_rows(
    fine: Sequence[NDArray[np.floating]],
    query: NDArray[np.float32],
    similarities: Sequence[NDArray[np.float32]],
    slack: Array,
    kind: Kind,
    alignment: AlignmentConfig,
) -> list[TrueRow]:
    """`true_row` of several rows, given float32 similarities: the same maxima and winners for a fraction of the work.

    slack: [rows], twice the most a float32 similarity can be from the float64 one. A pair that is smaller than the
        largest by more than that cannot be the maximum in float64.
    """
    axis = 0 if pools_query(kind, alignment) else 1
    pairs = []
    for values, margin in zip(similarities, slack, strict=True):
        near = values >= values.max(axis=axis, keepdims=True).astype(np.float64) - margin
        pairs.append(np.nonzero(near.T if axis == 0 else near))  # sorted by what is pooled, then by the other side
    vectors = [rows[pair[1] if axis == 0 else pair[0]] for rows, pair in zip(fine, pairs, strict=True)]
    others = [query[pair[0] if axis == 0 else pair[1]] for pair in pairs]
    products = inner_products(np.concatenate(vectors).astype(np.float64), np.concatenate(others).astype(np.float64))
    results, begin = [], 0
    for pooled, other in pairs:
        exact = products[begin : begin + len(pooled)]
        begin += len(pooled)
        first = np.flatnonzero(np.r_[True, pooled[1:] != pooled[:-1]])
        maxima = np.maximum.reduceat(exact, first)
        reached = np.flatnonzero(exact == maxima[pooled])
        winners = other[reached[np.searchsorted(pooled[reached], np.arange(len(first)))]].astype(np.int32)
        results.append(TrueRow(float(pool(maxima, alignment)), maxima, winners))
    return results


def _soft(similarities: Array, words: Array, alignment: AlignmentConfig) -> TrueRow:
    """VSA: each region attends to the words; similarities [R, W], words [W, D] (UPSTREAM.md, coding)."""
    scaled = similarities / alignment.attention_temperature
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    norm = np.sqrt(np.square(weights @ words).sum(axis=1))
    coding = (weights * similarities).sum(axis=1) / (
        norm + 1e-8
    )  # region . attended, as attended is linear in the words
    return TrueRow(float(pool(coding, alignment)), coding, np.full(len(coding), -1, np.int32))
