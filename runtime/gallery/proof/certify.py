"""From intervals to the certified top k: score again what could be best, in float32, then decide in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ...errors import GalleryCorrupt
from ..kernels.base import Kernel
from ..kernels.pool import Pool
from .bounds import float32_similarity_error, kth_largest, largest_norm, rounding
from .gallery_rows import GalleryRows
from .intervals import Intervals
from .pooling import Float64Array, pool_groups, score_change
from .true_score import TrueRow, true_row, true_rows

_FIRST_RESCORED = 22  # rows rescored beyond k before the threshold is looked at again; then twice as many


@dataclass(frozen=True)
class Ranking:
    """The best rows for one query.

    Attributes:
        rows: the rows, best first; ties by lower row.
        scores: float64, true scores; estimates from codes where the gallery keeps no fine copy.
        details: for each row its true score's similarities; None where there is no fine copy.
        candidates: rows the search chose among.
        rescored: rows that were scored again from the fine copy.
        certified: whether the ranking is proven to be that of exhaustive scoring.
        second, codes: rows of which the second level and the int8 codes were read, where the compiled search counted.
    """

    rows: NDArray[np.int64]
    scores: Float64Array
    details: Sequence[TrueRow] | None
    candidates: int
    rescored: int
    certified: bool
    second: int = 0
    codes: int = 0

    def reaching(self, floor: float) -> Ranking:
        """Without the rows that score less than `floor`."""
        count = int(np.count_nonzero(self.scores >= floor))  # they fall
        if count == len(self.rows):
            return self
        details = None if self.details is None else self.details[:count]
        return replace(self, rows=self.rows[:count], scores=self.scores[:count], details=details)


def empty_ranking() -> Ranking:
    """The ranking of no rows: trivially that of exhaustive scoring."""
    return Ranking(np.zeros(0, np.int64), np.zeros(0), (), 0, 0, certified=True)


def rank_by_codes(intervals: Intervals, k: int) -> Ranking:
    """The top k by the scores from codes, where the gallery keeps no fine copy: nothing is certified."""
    rows, scores = intervals.rows, intervals.scores
    order = np.lexsort((rows, -scores))[:k]
    return Ranking(rows[order], scores[order], None, len(rows), 0, certified=False)


class Certifier:
    """Ranks rows by their true scores, and rescores as few as the intervals allow; immutable.

    Args:
        gallery: whose rows are ranked; every part keeps the fine copy.
        kernel: what multiplies in float32.
        pool: the threads that exhaustive scoring runs on.
    """

    def __init__(self, gallery: GalleryRows, kernel: Kernel, pool: Pool) -> None:
        self._gallery = gallery
        self._kernel = kernel
        self._pool = pool

    def certify(self, query: NDArray[np.float32], intervals: Intervals, k: int, floor: float = -np.inf) -> Ranking:
        """The top k of the intervals' rows for a query's vectors [Q, D], certified among those rows.

        Rows are taken by falling upper bound and scored in float32, which is within a proven distance of float64; each
        score sharpens the threshold, and the first upper bound below it ends the search. What the float32 intervals
        leave undecided, a handful of rows, is scored in float64. Rows that score less than `floor` are not wanted.

        Raises:
            GalleryCorrupt: a row's two intervals have no score in common, so what is stored of it is not true.
        """
        rows, alignment = intervals.rows, self._gallery.alignment
        norm = largest_norm(query)
        lower, upper = intervals.scores - intervals.radius, intervals.scores + intervals.radius
        threshold = max(floor, kth_largest(lower, k))
        candidates = np.flatnonzero(upper >= threshold)
        candidates = candidates[np.argsort(-upper[candidates], kind="stable")]
        fine: list[NDArray[np.floating]] = []
        similarities: list[NDArray[np.float32]] = []
        low, high = np.empty((2, len(candidates)))
        done = 0
        while done < len(candidates) and upper[candidates[done]] >= threshold:
            within = int(np.searchsorted(-upper[candidates], -threshold, side="right"))
            stop = min(within, k + _FIRST_RESCORED if done == 0 else 2 * done)
            piece = candidates[done:stop]
            fine += self._gallery.fine(rows[piece])
            starts = np.cumsum([0] + [len(vectors) for vectors in fine[done:]])
            new = self._kernel.products(fine[done:], query)
            score, radius = self._float32_scores(new, starts, rows[piece], query, norm)
            low[done:stop], high[done:stop] = score - radius, score + radius
            _check_overlap(rows[piece], low[done:stop], high[done:stop], lower[piece], upper[piece])
            similarities += [new[a:b] for a, b in pairwise(starts)]
            done = stop
            threshold = max(threshold, kth_largest(low[:done], k))
        contenders = np.flatnonzero(high[:done] >= threshold)
        if not len(contenders):  # all score less than the floor
            return replace(empty_ranking(), candidates=len(rows), rescored=done)
        chosen = rows[candidates[contenders]]
        details = true_rows(
            [fine[i] for i in contenders],
            query,
            [similarities[i] for i in contenders],
            2 * self._float32_error(chosen, query, norm),
            self._gallery.kind,
            alignment,
        )
        order = sorted(range(len(chosen)), key=lambda i: (-details[i].score, chosen[i]))[:k]
        best = tuple(details[i] for i in order)
        scores = np.array([d.score for d in best])
        return Ranking(chosen[order], scores, best, len(rows), done, certified=True).reaching(floor)

    def exhaustive(self, query: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Ranking:
        """Score every row from the fine copy: certified by construction (VSA, whose bounds prune nothing).

        Without a fine copy rows are scored from what their codes stand for, and nothing is certified.
        """
        scores = np.empty(len(rows))

        def score(row: int) -> TrueRow:
            vectors = self._gallery.kept(row, query.shape[1])
            return true_row(vectors, query, self._gallery.kind, self._gallery.alignment)

        def task(first: int, last: int) -> None:
            for i in range(first, last):
                scores[i] = score(int(rows[i])).score

        step = max(1, -(-len(rows) // (4 * self._pool.threads)))
        self._pool.run([partial(task, a, min(a + step, len(rows))) for a in range(0, len(rows), step)])
        order = np.lexsort((rows, -scores))[:k]
        if not self._gallery.has_fine:
            return Ranking(rows[order], scores[order], None, len(rows), 0, certified=False)
        details = tuple(score(int(row)) for row in rows[order])
        return Ranking(rows[order], scores[order], details, len(rows), len(rows), certified=True)

    def _float32_error(self, rows: NDArray[np.int64], query: NDArray[np.float32], norm: float) -> Float64Array:
        """How far float32 similarities of rows can be from float64's: [rows]."""
        dim = query.shape[1]
        return float32_similarity_error(dim, self._kernel.roundings(dim), norm, self._gallery.fine_norm(rows))

    def _float32_scores(
        self,
        similarities: NDArray[np.float32],
        starts: NDArray[np.int64],
        rows: NDArray[np.int64],
        query: NDArray[np.float32],
        norm: float,
    ) -> tuple[Float64Array, Float64Array]:
        """Scores of rows from float32 similarities [sum of L, Q], and how far they can be from the true ones.

        starts: row i is similarities[starts[i]:starts[i + 1]]; norm: no less than any ||q||.
        """
        gallery, (count, dim) = self._gallery, query.shape
        if gallery.pools_query:
            reduced = np.maximum.reduceat(similarities, starts[:-1], axis=0)
            counts = np.full(len(rows), count)
        else:
            reduced, counts = similarities.max(axis=1), np.diff(starts)
        pooled_starts = np.r_[0, np.cumsum(counts)]
        pooled, spread = pool_groups(reduced.astype(np.float64).reshape(-1, 1), pooled_starts, gallery.alignment)
        similarity = norm * gallery.fine_norm(rows)
        change = self._float32_error(rows, query, norm) + rounding(similarity, dim, counts, gallery.alignment)
        return pooled[:, 0], score_change(change, counts, spread[:, 0], gallery.alignment)


def _check_overlap(
    rows: NDArray[np.int64], low: Float64Array, high: Float64Array, lower: Float64Array, upper: Float64Array
) -> None:
    """GalleryCorrupt unless each row's two intervals meet: one is from its fine copy, one from its codes."""
    apart = ~((low <= upper) & (lower <= high))
    if apart.any():
        raise contradiction(int(rows[np.flatnonzero(apart)[0]]))


def contradiction(row: int) -> GalleryCorrupt:
    """The error of a row whose two intervals have no score in common."""
    return GalleryCorrupt(
        f"row {row} of the gallery: its codes and its fine copy contradict each other, so this program did not write "
        "its files as they are; index the gallery again"
    )
