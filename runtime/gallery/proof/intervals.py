"""From scores by codes to intervals that hold the true scores: the bounds of bounds.py for rows of several parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, repeat, starmap

import numpy as np
from numpy.typing import NDArray

from .bounds import QuantizedQuery, Reach, int8_radius, no_axes
from .gallery_rows import GalleryRows
from .pooling import Float64Array


@dataclass(frozen=True)
class Intervals:
    """For one query the rows that could be the best, and what is known of their true scores.

    Attributes:
        rows: int64 [n], the rows, ascending.
        scores: float64 [n], scores by the rows' codes.
        radius: float64 [n], how far each true score can be from that; infinite where nothing is known.
    """

    rows: NDArray[np.int64]
    scores: Float64Array
    radius: Float64Array

    @classmethod
    def unknown(cls, rows: NDArray[np.int64]) -> Intervals:
        """Rows of which nothing is known, so that all are scored from the fine copy."""
        return cls(rows, np.zeros(len(rows)), np.full(len(rows), np.inf))


def similarity_changes(
    gallery: GalleryRows, queries: Sequence[QuantizedQuery], rows: NDArray[np.int64] | None = None
) -> Float64Array:
    """How far any similarity of each row can be from its estimate: [queries, rows]; of every row if `rows` is None."""
    changes = np.empty((len(queries), gallery.count if rows is None else len(rows)))
    reaches: dict[int, Reach] = {}
    every = zip(gallery.parts, repeat(slice(None)), starmap(slice, pairwise(gallery.bases)), strict=False)
    for part, local, places in every if rows is None else gallery.by_part(rows):
        axes = no_axes(queries[0].dim) if part.plan is None else part.plan.axes.leading
        one_plane = len(queries[0].planes) == 1  # a query of two planes loses next to nothing
        key = id(axes)  # parts that were prepared together share them
        if key not in reaches:
            reaches[key] = Reach(queries, axes, axes if one_plane else axes[:, :0])
        norms = part.norms if one_plane else part.norms[:, :0]
        changes[:, places] = reaches[key].change(part.error[local], part.norm[local], part.blocks[local], norms[local])
    return changes


def score_radius(
    gallery: GalleryRows,
    query: QuantizedQuery,
    change: Float64Array,
    spread: Float64Array,
    rows: NDArray[np.int64] | slice = slice(None),
) -> Float64Array:
    """How far the scores of rows from their codes can be from the true ones: [rows]; of every row by default.

    Args:
        gallery: whose rows they are.
        query: the quantized query.
        change: float64 [rows], what `similarity_changes` gives for the query.
        spread: float64 [rows], largest minus smallest pooled similarity (used by Softmax pooling only).
        rows: which rows.
    """
    count = query.count if gallery.pools_query else gallery.lengths[rows]
    return int8_radius(change, gallery.error[rows], gallery.norm[rows], query, count, spread, gallery.alignment)
