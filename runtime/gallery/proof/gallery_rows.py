"""All rows that a search ranks: some parts, one after another, and how a row and a query make a score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...contract import AlignmentConfig
from ..kernels.layout import decoded
from ..settings import Kind
from .pooling import Float64Array, pools_query
from .rows import Part


class GalleryRows:
    """The rows of some parts; immutable, so any number of threads may use one.

    Args:
        parts: consecutive rows; row numbers run on from part to part.
        kind: what the rows are.
        alignment: how similarities become scores.

    Attributes:
        bases: int64 [parts + 1]; part i holds the rows bases[i] up to bases[i + 1].
        pools_query: see pooling.py.
    """

    def __init__(self, parts: Sequence[Part], kind: Kind, alignment: AlignmentConfig) -> None:
        self.parts = tuple(parts)
        self.kind: Kind = kind
        self.alignment = alignment
        self.pools_query = pools_query(kind, alignment)
        self.bases = np.cumsum([0] + [len(part.starts) - 1 for part in self.parts])

    @property
    def count(self) -> int:
        """Number of rows of all parts (N), deleted ones included."""
        return int(self.bases[-1])

    @property
    def has_fine(self) -> bool:
        """Whether every part keeps the fine copy."""
        return all(part.has_fine for part in self.parts)

    @cached_property
    def error(self) -> NDArray[np.float32]:
        """For each row the largest ||x - x_hat|| of its vectors, rounded up: [N]."""
        return np.concatenate([part.error for part in self.parts])

    @cached_property
    def norm(self) -> NDArray[np.float32]:
        """For each row the largest ||x_hat|| of its vectors, rounded up: [N]."""
        return np.concatenate([part.norm for part in self.parts])

    @cached_property
    def lengths(self) -> Float64Array:
        """Number of vectors of each row, as float64: [N]."""
        return np.concatenate([np.diff(part.starts) for part in self.parts]).astype(np.float64)

    def fine_norm(self, rows: NDArray[np.int64]) -> Float64Array:
        """No less than any ||x|| of the rows' vectors in the fine copy: [rows]."""
        return self.norm[rows].astype(np.float64) + self.error[rows]

    def fine(self, rows: NDArray[np.int64]) -> list[NDArray[np.floating]]:
        """The fine copies of rows: float32 or float16 [L_i, D] each."""
        owner = np.searchsorted(self.bases, rows, side="right") - 1
        local = rows - self.bases[owner]
        return [self.parts[index].fine(row) for index, row in zip(owner.tolist(), local.tolist(), strict=True)]

    def kept(self, row: int, dim: int) -> NDArray[np.floating]:
        """The fine copy of one row, or where there is none what its codes stand for: [L, D]."""
        index = int(np.searchsorted(self.bases, row, side="right")) - 1
        part, local = self.parts[index], row - int(self.bases[index])
        return part.fine(local) if part.has_fine else decoded(part.codes(local, local + 1), dim, part.scale[local])

    def by_part(self, rows: NDArray[np.int64]) -> Iterator[tuple[Part, NDArray[np.int64], NDArray[np.int64]]]:
        """Each part that holds some of the rows, their numbers within that part, and their places in `rows`."""
        owner = np.searchsorted(self.bases, rows, side="right") - 1
        for index in np.unique(owner):
            places = np.flatnonzero(owner == index)
            yield self.parts[index], rows[places] - self.bases[index], places
