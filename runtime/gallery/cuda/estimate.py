"""The estimator on a GPU: rows are scored and listed there, with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..proof.gallery_rows import GalleryRows
from ..proof.intervals import Intervals
from .resident import ResidentScan, hold_all


class GpuEstimator:
    """Scores from what a GPU holds of the rows; its intervals hold the true scores where the scan is certified.

    Args:
        gallery: the rows; uploaded here, and freed with this estimator.
        scan: where they are held.

    Raises:
        BackendError: the GPU's memory does not suffice.
    """

    def __init__(self, gallery: GalleryRows, scan: ResidentScan) -> None:
        self.certified = scan.certified
        self._gallery = gallery
        self._scan = scan
        self._rows = hold_all(scan, gallery.parts)

    def intervals(
        self, queries: Sequence[NDArray[np.float32]], k: int, rows: NDArray[np.int64]
    ) -> Callable[[int], Intervals]:
        """See `Estimator.intervals`: those of `rows` that the scan lists."""
        gallery = self._gallery
        allowed = np.zeros(gallery.count, bool)
        allowed[rows] = True

        listed = self._scan.shortlist(self._rows, queries, k, allowed, np.full(len(queries), -np.inf))

        def of(i: int) -> Intervals:
            rows, scores, radii, _ = listed[i]
            if not self.certified:  # the scan's own best k; their true scores and winners, nothing more
                return Intervals.unknown(np.sort(rows[np.lexsort((rows, -scores))[:k]]))
            return Intervals(rows, scores, radii)

        return of
