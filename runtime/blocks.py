"""Cut work into blocks of the sizes that a graph takes: rows of similar length together, with little padding."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .backends import Array, Backend
from .contract import Range
from .embeddings import Embeddings
from .halves import as_dtype


@dataclass(frozen=True)
class Block:
    """Some rows of embeddings, cut to their longest and of the graph's dtype."""

    rows: NDArray[np.intp]
    vectors: Array
    lengths: NDArray[np.int32]

    @classmethod
    def of(cls, whole: Embeddings, rows: NDArray[np.intp], dtype: str, columns: Range, step: int = 1) -> Block:
        """Cut the rows out of `whole`, as wide as `padded_width` returns."""
        lengths = whole.lengths[rows]
        cut = cut_rows(take_rows(whole.vectors, rows), lengths, padded_width(int(lengths.max()), columns, step))
        return cls(rows, as_dtype(cut, dtype), lengths)


def padded_width(longest: int, columns: Range, step: int) -> int:
    """The width at which rows of up to `longest` columns are run: a multiple of `step`, as far as the range allows."""
    return max(columns.min, min(columns.max, -(-longest // step) * step))


def groups(lengths: NDArray[np.int32], range_: Range, most: int) -> list[NDArray[np.intp]]:
    """Rows in groups of similar length, of at most `most` and never more than the range allows."""
    order = np.argsort(lengths, kind="stable")
    size = min(max(most, range_.min), range_.max)
    return [order[piece] for piece in pieces(len(order), Range(1, 1, size))]


def pieces(count: int, range_: Range) -> list[slice]:
    """0..count cut into the fewest pieces of at most range_.max, all of nearly one size."""
    number = -(-count // range_.max)
    edges = [count * piece // number for piece in range(number + 1)]
    return [slice(begin, end) for begin, end in itertools.pairwise(edges)]


def follow_each_other(rows: NDArray[np.intp]) -> bool:
    """Whether each row is the one after the row before it."""
    return bool((np.diff(rows) == 1).all())


def take_rows(array: Array, rows: NDArray[np.intp]) -> Array:
    """The rows of an array: a view where they follow each other in it, for a copy takes longer than many a graph."""
    if follow_each_other(rows):
        return array[rows[0] : rows[-1] + 1]
    return array[rows]


def cut_rows(rows: Array, lengths: NDArray[np.int32], width: int) -> Array:
    """Rows [B, L, ...] as [B, width, ...] with zeros past each length; copies only where something must change."""
    if width <= rows.shape[1]:
        rows = rows[:, :width]
    else:
        rows = np.pad(rows, [(0, 0), (0, width - rows.shape[1]), *[(0, 0)] * (rows.ndim - 2)])
    if lengths.min() < width:
        rows = rows.copy()
        rows[np.arange(width) >= lengths[:, None]] = 0
    return np.ascontiguousarray(rows)


def padded(array: Array, least: int) -> Array:
    """Repeat the last row until there are at least `least` rows."""
    short = least - len(array)
    return array if short <= 0 else np.concatenate([array, np.repeat(array[-1:], short, axis=0)])


def run_rows(backend: Backend, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run a graph whose one batch symbol is B, also on fewer rows than it takes."""
    count = len(next(iter(feeds.values())))
    outputs = backend.run({name: padded(array, backend.ranges["B"].min) for name, array in feeds.items()})
    return {name: array[:count] for name, array in outputs.items()}
