"""The estimator for the numpy kernel: the second level's bounds leave few int8 codes to read.

numpy computes the right side of (3) in bounds.py for every vector, from a quarter of the bytes of its int8 codes. Rows
whose bound is below the k-th best lower bound of those that look best are left out, and the others get their intervals
from the int8 codes. Many queries at once share a scan of the codes, which is then faster. So is onnxruntime's scan even
for one query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .estimate import CpuEstimator
from .kernels.base import WIDE
from .kernels.pool import Pool
from .proof.bounds import kth_largest
from .proof.gallery_rows import GalleryRows
from .proof.intervals import Intervals
from .proof.pooling import Float64Array, pool_groups
from .proof.prefix import SearchPlan
from .proof.prefix_bounds import WeightedQueries, weigh

_BEYOND = 22  # rows beyond k that give the threshold
_VECTORS = 2048  # that a thread bounds at a time: their bytes as float32 fit in L2


class PrefixEstimator:
    """Scores from int8 codes of the rows that the second level does not exclude; immutable.

    Args:
        gallery: the rows; those of parts without levels are never excluded.
        codes: what bounds the rows that are left.
        pool: the threads it runs on.
    """

    certified = True

    def __init__(self, gallery: GalleryRows, codes: CpuEstimator, pool: Pool) -> None:
        self._gallery = gallery
        self._codes = codes
        self._pool = pool
        pooling = gallery.alignment.pooling
        # Softmax pooling is a mean of the similarities, so the largest one bounds it.
        self._above = replace(gallery.alignment, pooling="Max" if pooling == "Softmax" else pooling)

    def intervals(
        self, queries: Sequence[NDArray[np.float32]], k: int, rows: NDArray[np.int64]
    ) -> Callable[[int], Intervals]:
        """See `Estimator.intervals`."""
        if sum(len(query) for query in queries) > WIDE:
            return self._codes.intervals(queries, k, rows)
        upper = self._upper(queries)

        def of(i: int) -> Intervals:
            mine = upper[i, rows]
            count = min(len(rows), k + _BEYOND)
            best = np.sort(np.argpartition(-mine, count - 1)[:count])
            known = self._codes.of_rows(queries[i], rows[best])
            threshold = kth_largest(known.scores - known.radius, k)
            return self._codes.of_rows(queries[i], rows[mine >= threshold])

        return of

    def _upper(self, queries: Sequence[NDArray[np.float32]]) -> Float64Array:
        """Upper bounds of the scores of every row: [queries, N]."""
        gallery = self._gallery
        starts = np.cumsum([0] + [len(query) for query in queries])
        vectors = np.concatenate(queries).astype(np.float64)
        largest = float((gallery.norm.astype(np.float64) + gallery.error).max())
        counts = (
            np.repeat(np.diff(starts), np.diff(starts)).astype(np.float64)
            if gallery.pools_query
            else gallery.lengths.max()
        )
        weighted: dict[int, WeightedQueries] = {}  # parts that were prepared together share a plan
        upper = np.full((len(queries), gallery.count), np.inf)

        def task(index: int, first: int, last: int, weights: WeightedQueries) -> None:
            part = gallery.parts[index]
            codes, bounded = part.second(first, last)
            row_starts = part.starts[first : last + 1] - part.starts[first]
            similarities = weights.above(codes)  # [V, Q]
            if gallery.pools_query:
                most = np.maximum.reduceat(similarities, row_starts[:-1], axis=0)
                scores = pool_groups(np.ascontiguousarray(most.T), starts, self._above)[0]
            else:
                most = np.maximum.reduceat(similarities, starts[:-1], axis=1)
                scores = pool_groups(most, row_starts, self._above)[0].T
            base = int(gallery.bases[index])
            upper[:, base + first : base + last] = np.where(bounded & ~np.isnan(scores), scores, np.inf)

        tasks = []
        for index, part in enumerate(gallery.parts):
            plan: SearchPlan | None = part.plan
            count = len(part.starts) - 1
            if plan is None or plan.second is None or not count:
                continue
            if id(plan) not in weighted:
                weighted[id(plan)] = weigh(vectors, plan, largest, counts, gallery.alignment)
            pieces = min(count, -(-int(part.starts[-1]) // _VECTORS))
            edges = np.linspace(0, count, pieces + 1).astype(np.int64)
            tasks += [partial(task, index, int(a), int(b), weighted[id(plan)]) for a, b in pairwise(edges)]
        self._pool.run(tasks)
        return upper
