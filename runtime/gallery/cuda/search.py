"""The search on a GPU: it lists the rows that could be the best, and decides among them where it holds the fine copy.

Otherwise the compiled search ranks the lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..compiled import CompiledSearch
from ..proof.certify import Ranking
from ..proof.gallery_rows import GalleryRows
from .best import best_of
from .decide import Decided
from .list_queue import BEYOND
from .resident import ResidentScan, hold_all

_SCORE_BYTES = 128 << 20  # of the scores on the GPU; more queries are served in turns
_TURN = 512  # queries of a turn at most


class ResidentSearch:
    """Ranks the rows of a gallery whose codes a GPU holds; any number of threads may use one.

    Args:
        gallery: the rows; uploaded here, and freed with this search.
        scan: where they are held.
        compiled: what ranks the rows that the scan lists, where the GPU does not decide among them.

    Raises:
        BackendError: the GPU's memory does not suffice.
    """

    def __init__(self, gallery: GalleryRows, scan: ResidentScan, compiled: CompiledSearch) -> None:
        self._scan, self._compiled = scan, compiled
        self._count, self._alignment = gallery.count, gallery.alignment
        self._rows = hold_all(scan, gallery.parts)
        self._decide = scan.decider(self._rows)

    def rank(
        self,
        queries: Sequence[NDArray[np.float32]],
        k: int,
        allowed: NDArray[np.bool_],
        floors: NDArray[np.float64] | None = None,
    ) -> list[Ranking]:
        """The top k of each query's vectors, certified where the scan is; see `CompiledSearch.rank`."""
        least = np.full(len(queries), -np.inf) if floors is None else floors
        candidates = int(np.count_nonzero(allowed))
        k = max(1, min(k, self._count))
        turn = max(1, min(_TURN, _SCORE_BYTES // (8 * self._count)))
        if self._decide is None:
            pieces = [slice(first, first + turn) for first in range(0, len(queries), turn)]
            return [
                replace(ranking, candidates=candidates)
                for piece in pieces
                for ranking in self._turn(queries[piece], k, allowed, least[piece])
            ]
        lengths = np.array([len(query) for query in queries])
        found: dict[int, Ranking] = {}

        def use(decided: Decided) -> None:
            found.update(best_of(decided, lengths, k, least, candidates, self._alignment))

        self._decide(queries, k, allowed, least, turn, use)
        return [found[i] for i in range(len(queries))]

    def _turn(
        self, queries: Sequence[NDArray[np.float32]], k: int, allowed: NDArray[np.bool_], floors: NDArray[np.float64]
    ) -> list[Ranking]:
        listed = self._scan.shortlist(self._rows, queries, k, allowed, floors)
        if not self._scan.certified:  # its own best k: their true scores and winners, and no proof
            best = [np.sort(each.rows[np.lexsort((each.rows, -each.scores))[:k]]) for each in listed]
            return [replace(each, certified=False) for each in self._compiled.rank_listed(queries, k, best, floors)]
        reached = np.array([each.threshold for each in listed])
        rows = [each.rows for each in listed]
        long = [i for i, own in enumerate(rows) if len(own) > 2 * (k + BEYOND)]
        if long:  # the true scores of the best few leave less of these
            few = [np.sort(rows[i][np.argsort(-listed[i].scores)[: k + BEYOND]]) for i in long]
            rankings = self._compiled.rank_listed([queries[i] for i in long], k, few, reached[long])
            for i, ranking in zip(long, rankings, strict=True):
                if len(ranking.scores) == k:
                    reached[i] = max(reached[i], ranking.scores[-1])
                    rows[i] = rows[i][listed[i].scores + listed[i].radii >= reached[i]]
        return self._compiled.rank_listed(queries, k, rows, reached)
