"""The ranker of a gallery on a GPU: rows are scored and listed there, certified and explained here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...contract import AlignmentConfig
from ...errors import InputError
from ..kernels.base import Kernel
from ..kernels.pool import Pool
from ..proof.bounds import quantize_query
from ..proof.rows import Part
from ..rank import Ranker, Ranking
from ..settings import Kind
from .scan import ResidentScan


class ResidentRanker(Ranker):
    """A `Ranker` whose scan runs on the GPU; its rankings are the CPU's where the scan is certified.

    Args:
        parts, kind, alignment, kernel, pool: as of `Ranker`.
        scan: where the parts are held.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        kind: Kind,
        alignment: AlignmentConfig,
        kernel: Kernel,
        pool: Pool,
        scan: ResidentScan,
    ) -> None:
        super().__init__(parts, kind, alignment, kernel, pool)
        self._resident = scan
        self._held = [scan.hold(part) for part in self.parts]

    def fast(
        self, queries: Sequence[NDArray[np.float32]], k: int, allowed: NDArray[np.bool_], share: float
    ) -> list[Ranking]:
        """Refused: the prefixes of the fast scan are not on the GPU."""
        raise InputError("mode must be exact for a gallery on a GPU, got 'fast'")

    def _exact_turn(self, queries: Sequence[NDArray[np.float32]], k: int, rows: NDArray[np.int64]) -> list[Ranking]:
        quantized = [quantize_query(query, per_vector=True) for query in queries]
        allowed = np.zeros(self.count, bool)
        allowed[rows] = True
        listed = self._resident.shortlist(self._held, quantized, k, allowed)

        def rank(i: int) -> Ranking:
            chosen, score = listed[i]
            if self._resident.certified:
                change = self._changes(quantized[i : i + 1], chosen)[0]
                radius = self._radius(quantized[i], change, np.zeros(len(chosen)), chosen)
            else:  # the scan's own best k; their true scores and winners, nothing more
                order = np.lexsort((chosen, -score))[:k]
                chosen, score = chosen[order], score[order]
                radius = np.full(len(chosen), np.inf)
            ranking = self._rescore(queries[i], quantized[i], chosen, score - radius, score + radius, k)
            return replace(ranking, candidates=len(rows), certified=self._resident.certified)

        return self._each(rank, len(queries))
