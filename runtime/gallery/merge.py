"""One answer from those of several shards.

Each shard's answer is proven to be its k best rows by true score. A row that is not in its shard's answer has k rows of
that shard before it, so it is not among the k best of all: the k best of the answers together are the k best of all
rows. The same holds where a shard left out the rows below a floor, as long as k rows are known that reach it: a row
that scores as much as the floor is kept, because it may come first by its order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .result import SearchResult


class Floors:
    """The k-th best score that is known so far of each query: no row below it can be among the k best.

    Args:
        least: float64 [queries], floors to begin with.
        k: length of the answers.
    """

    def __init__(self, least: NDArray[np.float64], k: int) -> None:
        self.values = least.copy()
        self._k = k
        self._best = [np.zeros(0)] * len(least)

    def learn(self, results: Sequence[SearchResult]) -> None:
        """Take in a shard's answers, one for each query."""
        for i, result in enumerate(results):
            best = np.sort(np.append(self._best[i], [hit.score for hit in result.hits]))[::-1][: self._k]
            self._best[i] = best
            if len(best) == self._k:
                self.values[i] = max(self.values[i], best[-1])


def merge_results(parts: Sequence[SearchResult], k: int) -> SearchResult:
    """The k best rows of all shards from the answer of each, in the order of the shards, which decides ties.

    It is certified where every part is, and its reason is that of the first part that is not, or of the first part with
    rows where all are.

    Args:
        parts: one for each shard, at least one.
        k: how many rows were asked of each.
    """
    if len(parts) == 1:
        return parts[0]
    hits = sorted((hit for part in parts for hit in part.hits), key=lambda hit: -hit.score)  # stable
    doubtful = [part for part in parts if not part.certified]
    speaking = [*doubtful, *(part for part in parts if part.rows), parts[0]]
    return SearchResult(
        tuple(hits[:k]),
        not doubtful,
        speaking[0].reason,
        sum(part.rows for part in parts),
        sum(part.rescored for part in parts),
        sum(part.second for part in parts),
        sum(part.codes for part in parts),
    )
