"""The estimator on a GPU: rows are scored and listed there, and the intervals of those listed are computed here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..proof.bounds import quantize_queries
from ..proof.certify import Certifier
from ..proof.gallery_rows import GalleryRows
from ..proof.intervals import Intervals, score_radius, similarity_changes
from .scan import ResidentScan


class GpuEstimator:
    """Scores from what a GPU holds of the rows; its intervals are the CPU's where the scan is certified.

    Args:
        gallery: the rows; uploaded here, and freed with this estimator.
        scan: where they are held.
        certifier: what scores a few rows again, for the threshold.

    Raises:
        BackendError: the GPU's memory does not suffice.
    """

    def __init__(self, gallery: GalleryRows, scan: ResidentScan, certifier: Certifier) -> None:
        self.certified = scan.certified
        self._gallery = gallery
        self._scan = scan
        self._certifier = certifier
        self._rows = scan.gather([scan.hold(part) for part in gallery.parts])

    def intervals(
        self, queries: Sequence[NDArray[np.float32]], k: int, rows: NDArray[np.int64]
    ) -> Callable[[int], Intervals]:
        """See `Estimator.intervals`: those of `rows` that the scan lists."""
        gallery = self._gallery
        quantized = quantize_queries(queries, per_vector=True)
        allowed = np.zeros(gallery.count, bool)
        allowed[rows] = True

        def thresholds(asked: Sequence[tuple[int, NDArray[np.int64]]]) -> list[float]:
            return self._certifier.lower_bounds([(queries[i], few) for i, few in asked], k)

        listed = self._scan.shortlist(self._rows, quantized, k, allowed, thresholds)

        def of(i: int) -> Intervals:
            chosen, scores = listed[i]
            if not self.certified:  # the scan's own best k; their true scores and winners, nothing more
                return Intervals.unknown(np.sort(chosen[np.lexsort((chosen, -scores))[:k]]))
            change = similarity_changes(gallery, quantized[i : i + 1], chosen)[0]
            radius = score_radius(gallery, quantized[i], change, np.zeros(len(chosen)), chosen)
            return Intervals(chosen, scores, radius)

        return of
