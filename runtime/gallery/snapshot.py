"""One commit of a gallery, open for search."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .prepare import FastScan
from .rank import Ranker
from .store.catalogue import SegmentRecord
from .store.segments import Segment


@dataclass(frozen=True)
class Snapshot:
    """One commit, its files mapped; searches that began on it end on it, whatever is committed meanwhile."""

    generation: int
    records: tuple[SegmentRecord, ...]
    segments: tuple[Segment, ...]
    bases: NDArray[np.int64]
    live: NDArray[np.bool_]
    ranker: Ranker
    fast: FastScan | None
    masks: dict[str, NDArray[np.bool_]] = field(default_factory=dict)  # of the last filters, by their text

    def locate(self, row: int) -> tuple[int, int]:
        """(index of the segment, position in it) of a row."""
        index = int(np.searchsorted(self.bases, row, side="right")) - 1
        return index, row - int(self.bases[index])

    def place(self, row: int) -> tuple[int, int]:
        """(number of the segment, position in it) of a row."""
        index, position = self.locate(row)
        return self.records[index].number, position
