"""The score that a certified search ranks by: one row against one query on the fine copy, in float64.

Slow and plain where it can be (`true_row`), and a shortcut proven to give the same maxima (`true_rows`): only pairs
that float32 cannot tell from the maximum are multiplied again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray

from ...contract import AlignmentConfig
from ..settings import Kind
from .pooling import Float64Array, pool, pools_query


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
    maxima: Float64Array
    winners: NDArray[np.int32]


class TrueRows(Sequence[TrueRow]):
    """Several rows that have as many similarities each; each `TrueRow` is made when it is asked for.

    Attributes:
        scores: float64 [n].
        maxima: float64 [n, Q].
        winners: int32 [n, Q].
    """

    __slots__ = ("maxima", "scores", "winners")

    def __init__(self, scores: Float64Array, maxima: Float64Array, winners: NDArray[np.int32]) -> None:
        self.scores, self.maxima, self.winners = scores, maxima, winners

    def __len__(self) -> int:
        return len(self.scores)

    @overload
    def __getitem__(self, index: int) -> TrueRow: ...

    @overload
    def __getitem__(self, index: slice) -> TrueRows: ...

    def __getitem__(self, index: int | slice) -> TrueRow | TrueRows:
        if isinstance(index, slice):
            return TrueRows(self.scores[index], self.maxima[index], self.winners[index])
        return TrueRow(float(self.scores[index]), self.maxima[index], self.winners[index])


def inner_products(left: Float64Array, right: Float64Array) -> Float64Array:
    """Row-wise float64 inner products: [P, D] and [P, D] -> [P]; each depends on its own two vectors alone.

    Eight partial sums, lane l of elements l, l + 8, ..., then halves of them added: the compiled search has that order,
    too, so scores are the same to the bit whatever found them. (Products of two float32 numbers are exact in float64.)
    """
    pairs, dim = left.shape
    products = np.zeros((pairs, -(-dim // 8), 8))
    np.multiply(left, right, out=products.reshape(pairs, -1)[:, :dim])
    lanes = np.add.reduce(products, axis=1)
    for half in (4, 2, 1):
        lanes = lanes[:, :half] + lanes[:, half:]
    return np.asarray(lanes[:, 0])


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
    slack: Float64Array,
    kind: Kind,
    alignment: AlignmentConfig,
) -> list[TrueRow]:
    """`true_row` of several rows, given float32 similarities: the same maxima and winners for a fraction of the work.

    slack: [rows], twice the most a float32 similarity can be from the float64 one. A pair that is smaller than the
        largest by more than that cannot be the maximum in float64.
    """
    lengths = np.array([len(rows) for rows in fine])
    starts = np.r_[0, np.cumsum(lengths)]
    row_of = np.repeat(np.arange(len(fine)), lengths)
    values, words = np.concatenate(similarities), len(query)
    if pools_query(kind, alignment):
        least = np.maximum.reduceat(values, starts[:-1], axis=0).astype(np.float64) - slack[:, None]
        vector, word = np.nonzero(values >= least[row_of])
        order = np.lexsort((vector, word, row_of[vector]))
        vector, word = vector[order], word[order]
        group, other = row_of[vector] * words + word, vector - starts[row_of[vector]]
        group_starts = np.arange(len(fine) + 1) * words
    else:
        least = values.max(axis=1).astype(np.float64) - slack[row_of]
        vector, word = np.nonzero(values >= least[:, None])
        group, other, group_starts = vector, word, starts
    edges = np.searchsorted(row_of[vector], np.arange(len(fine) + 1))
    exact, products = query.astype(np.float64), np.empty(len(vector))
    for rows, (a, b), start in zip(fine, pairwise(edges), starts, strict=False):  # of all at once, float64 copies cost
        products[a:b] = inner_products(rows[vector[a:b] - start].astype(np.float64), exact[word[a:b]])  # more than sums
    maxima = np.maximum.reduceat(products, np.flatnonzero(np.r_[True, group[1:] != group[:-1]]))
    reached = np.flatnonzero(products == maxima[group])
    winners = other[reached[np.searchsorted(group[reached], np.arange(len(maxima)))]].astype(np.int32)
    spans = [slice(a, b) for a, b in pairwise(group_starts)]
    return [TrueRow(float(pool(maxima[span], alignment)), maxima[span], winners[span]) for span in spans]


def _soft(similarities: Float64Array, words: Float64Array, alignment: AlignmentConfig) -> TrueRow:
    """VSA: each region attends to the words; similarities [R, W], words [W, D] (docs/published-model.md)."""
    scaled = similarities / alignment.attention_temperature
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    norm = np.sqrt(np.square(weights @ words).sum(axis=1))
    coding = (weights * similarities).sum(axis=1) / (
        norm + 1e-8
    )  # region . attended, as attended is linear in the words
    return TrueRow(float(pool(coding, alignment)), coding, np.full(len(coding), -1, np.int32))
