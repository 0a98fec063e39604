"""The best rows by what a GPU decided: all of its pairs are pooled at once, by the code that pools everywhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ...contract import AlignmentConfig
from ..proof.certify import Ranking
from ..proof.pooling import Float64Array, pool
from ..proof.true_score import TrueRows
from .decide import Decided


def best_of(
    decided: Decided,
    lengths: NDArray[np.int64],
    k: int,
    floors: Float64Array,
    candidates: int,
    alignment: AlignmentConfig,
) -> Iterator[tuple[int, Ranking]]:
    """The number and the certified top k of each query that was decided; in any order.

    Args:
        decided: of some queries.
        lengths: int64 [queries], the number of vectors of every query, by number.
        k: how many rows are wanted.
        floors: float64 [queries], the least score that is wanted, by number.
        candidates: rows that the search chose among.
        alignment: how similarities become scores.
    """
    numbers = decided.numbers
    scores = pooled(decided.maxima, lengths[numbers[decided.queries]], alignment)
    kept = np.flatnonzero(scores >= _least(scores, decided.queries, len(numbers), k, floors[numbers]))
    kept = kept[np.lexsort((decided.rows[kept], -scores[kept], decided.queries[kept]))]
    best = decided.choose(kept)
    scores, counts = scores[kept], np.bincount(best.queries, minlength=len(numbers))
    ends = np.cumsum(counts)
    begins, ends = ends - counts, ends - np.maximum(counts - k, 0)  # equal scores may be more than k
    columns = numbers, lengths[numbers], decided.found, begins, ends
    for number, length, found, begin, end in zip(*(each.tolist() for each in columns), strict=True):
        span = slice(begin, end)
        own = scores[span]
        details = TrueRows(own, best.maxima[span, :length], best.winners[span, :length])
        yield number, Ranking(best.rows[span], own, details, candidates, found, certified=True)


def pooled(maxima: Float64Array, lengths: NDArray[np.int64], alignment: AlignmentConfig) -> Float64Array:
    """The score of each pair's similarities [P, S], given how many it has: [P]."""
    if len(lengths) and lengths.min() == maxima.shape[1]:
        return pool(maxima, alignment)
    scores = np.empty(len(maxima))
    for length in np.unique(lengths):
        own = np.flatnonzero(lengths == length)
        scores[own] = pool(np.ascontiguousarray(maxima[own, :length]), alignment)
    return scores


def _least(scores: Float64Array, queries: NDArray[np.int64], count: int, k: int, floors: Float64Array) -> Float64Array:
    """For each pair what it must reach: the k-th largest score of its query's pairs, and the query's floor."""
    sizes = np.bincount(queries, minlength=count)
    if sizes.max(initial=0) > k:
        order = np.argsort(queries, kind="stable")
        place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        table = np.full((count, sizes.max()), -np.inf)
        table[queries[order], place] = scores[order]
        column = table.shape[1] - k
        floors = np.maximum(floors, np.partition(table, column, axis=1)[:, column])
    return np.asarray(floors[queries])
