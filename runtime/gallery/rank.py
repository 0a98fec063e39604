"""The certified top k: an estimator bounds the score of every row, and the certifier scores again what could be best.

The truth is `true_score`: one row against one query on the fine copy in float64. `Ranker.exact` returns the k rows with
the highest true score, ties by lower row, and is proven (bounds.py) to return what scoring every row would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .kernels.base import WIDE, Kernel
from .kernels.pool import Pool
from .proof.certify import Certifier, Ranking, empty_ranking, rank_by_codes
from .proof.gallery_rows import GalleryRows
from .proof.intervals import Intervals

_ESTIMATE_BYTES = 256 << 20  # of estimates held at once; more queries are served in turns
_TURN = 64  # queries estimated together: enough for a scan to be bound by arithmetic

Queries = Sequence[NDArray[np.float32]]  # each query's vectors [Q_i, D]


class Estimator(Protocol):
    """Turns codes into intervals that hold the true scores: `CpuEstimator`, or `GpuEstimator`.

    Attributes:
        certified: whether the intervals are proven to hold the true scores, and all rows that could be best are there.
    """

    @property
    def certified(self) -> bool:
        """See above."""

    def intervals(self, queries: Queries, k: int, rows: NDArray[np.int64]) -> Callable[[int], Intervals]:
        """Scan the codes for some queries; query i's intervals are computed when the returned function is called.

        Args:
            queries: the queries' vectors.
            k: how many rows are wanted; rows that cannot be among that many may be left out.
            rows: ascending, the rows to choose among, at least one.
        """


class Search(Protocol):
    """A whole search in one call: `CompiledSearch`, or `ResidentSearch`."""

    def rank(
        self, queries: Queries, k: int, allowed: NDArray[np.bool_], floors: NDArray[np.float64] | None
    ) -> list[Ranking]:
        """What `Ranker.exact` returns."""


class Ranker:
    """Ranks the rows of a gallery; immutable, so any number of threads may use one.

    Args:
        gallery: the rows.
        estimator: what bounds their scores.
        kernel: what rescores them.
        pool: the threads that rankings are computed on.
        search: what does all of it instead, where it can.
    """

    def __init__(
        self,
        gallery: GalleryRows,
        estimator: Estimator,
        kernel: Kernel,
        pool: Pool,
        search: Search | None = None,
    ) -> None:
        self._search = search
        self._gallery = gallery
        self._estimator = estimator
        self._certifier = Certifier(gallery, kernel, pool)
        self._pool = pool

    def exact(
        self, queries: Queries, k: int, allowed: NDArray[np.bool_], floors: NDArray[np.float64] | None = None
    ) -> list[Ranking]:
        """The certified top k of each query's vectors [Q_i, D] among the rows where `allowed` [N] is True.

        floors: float64 [queries], the least score of a row that is wanted for each query. The higher they are, the
            fewer rows are scored again.
        """
        if not allowed.any():
            return [empty_ranking() for _ in queries]
        if self._search is not None:
            return self._search.rank(queries, k, allowed, floors)
        rows = np.flatnonzero(allowed)
        least = [-np.inf] * len(queries) if floors is None else floors.tolist()
        if self._gallery.alignment.coding == "VSA":  # codes have no maxima that its scores could be pooled from
            return [
                self._certifier.exhaustive(query, rows, k).reaching(floor)
                for query, floor in zip(queries, least, strict=True)
            ]
        rankings = self._in_turns(queries, rows, k, least)
        certified = self._gallery.has_fine and self._estimator.certified
        return [replace(ranking, candidates=len(rows), certified=certified) for ranking in rankings]

    def _in_turns(self, queries: Queries, rows: NDArray[np.int64], k: int, floors: Sequence[float]) -> list[Ranking]:
        """Rank the queries in pieces whose estimates fit the memory set aside for them, one piece a thread.

        So while one thread computes rankings, which Python's lock lets only one do, the others scan.
        """

        def rank(first: int) -> list[Ranking]:
            piece = queries[first : first + size]
            intervals = self._estimator.intervals(piece, k, rows)
            return self._pool.map(lambda i: self._rank(piece[i], intervals(i), k, floors[first + i]), len(piece))

        threads = self._pool.threads
        fitting = max(1, _ESTIMATE_BYTES // (16 * self._gallery.count * threads))
        size = min(_TURN, fitting, -(-len(queries) // (2 * threads)))
        if sum(len(query) for query in queries) <= WIDE:  # reading the codes once serves all
            size = len(queries)
        firsts = range(0, len(queries), max(1, size))
        return [ranking for piece in self._pool.map(lambda i: rank(firsts[i]), len(firsts)) for ranking in piece]

    def _rank(self, query: NDArray[np.float32], intervals: Intervals, k: int, floor: float) -> Ranking:
        if not self._gallery.has_fine:
            return rank_by_codes(intervals, k).reaching(floor)
        return self._certifier.certify(query, intervals, k, floor)
