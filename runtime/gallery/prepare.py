"""The fast scan: a rotation of the gallery whose first coordinates carry most of every inner product.

The rotation is the gallery's own principal axes (of the second moment: inner products are about the origin, not about
the mean). Scanning the first 128 of 1,024 coordinates at int8 reads an eighth of the bytes; the best rows by that
estimate are ranked again from all coordinates. Real queries choose how many rows are needed, and others measure what
that costs in recall.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..embeddings import Embeddings
from ..errors import GalleryCorrupt
from .estimate import CpuEstimator
from .kernels.choose import open_kernel
from .kernels.pool import Pool
from .proof.bounds import fit_axes, no_axes
from .proof.certify import Ranking
from .proof.gallery_rows import GalleryRows
from .proof.rows import Part
from .rank import Ranker
from .settings import GallerySettings
from .store.catalogue import MEASURED, FastRecord
from .store.files import FileRecord, MappedFile
from .store.segments import Prepared, Segment

PREFIX = 128  # coordinates; docs/architecture.md: recall 1.0000 at 128, 0.987 at 64, rescoring 5 %
MIN_ROWS = 1000  # below which fast search is exact search: both take about a millisecond
_SAMPLE = 20_000  # vectors the axes are fitted to
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
_WANTED = 0.999
_PLANE_WORTH = 0.02  # of the rows: rescoring as many takes about what scanning a second plane takes
_K = 10


@dataclass(frozen=True)
class FastScan:
    """A gallery's fast scan.

    Attributes:
        basis: [D, P], orthonormal columns.
        axes: [D, m], the queries' axes of bounds.py (1'); m = 0 where there were no queries.
        planes: number of planes of queries' codes in exact search: 1 if that rescored few more rows than 2 did.
        share: share of the rows that are ranked again from all coordinates.
        recall: measured share of the exact top `k` that was found; None if there were no queries.
        k: length of the rankings that were measured.
        queries: number of queries that measured the recall; none of them chose `share` or `planes`.
    """

    basis: NDArray[np.floating]
    axes: NDArray[np.floating]
    planes: int
    share: float
    recall: float | None
    k: int
    queries: int

    @property
    def prepared(self) -> Prepared:
        """What all segments share."""
        return Prepared(self.basis, self.axes)

    def to_record(self, file: FileRecord) -> FastRecord:
        """What the catalogue keeps of it; the basis and the axes lie in `file`."""
        return FastRecord(file, *(getattr(self, name) for name in MEASURED))


def fit_basis(segments: Sequence[Segment], live: Sequence[NDArray[np.bool_]], dim: int) -> NDArray[np.float32]:
    """The first principal axes of living rows' vectors, evenly sampled: float32 [D, min(PREFIX, D)]."""
    total = sum(int(s.starts[-1]) for s in segments)
    step = max(1, total // _SAMPLE)
    moment = np.zeros((dim, dim))
    for segment, alive in zip(segments, live, strict=True):
        for row in np.flatnonzero(alive):
            first = int(-segment.starts[row] % step)
            vectors = segment.vectors(int(row), int(row) + 1)[first::step].astype(np.float64)
            moment += vectors.T @ vectors
    _, axes = np.linalg.eigh(moment)  # by rising eigenvalue
    return np.ascontiguousarray(axes[:, ::-1][:, :PREFIX], np.float32)


def unpadded(queries: Embeddings | Iterable[Embeddings] | None) -> list[NDArray[np.float32]]:
    """The vectors [Q_i, D] of each query."""
    if queries is None:
        return []
    parts = [queries] if isinstance(queries, Embeddings) else queries
    return [row[:length].copy() for part in parts for row, length in zip(part.vectors, part.lengths, strict=True)]


def query_axes(queries: Sequence[NDArray[np.float32]], dim: int) -> NDArray[np.float32]:
    """Axes that hold most of queries like these."""
    return fit_axes(np.concatenate(queries)) if queries else no_axes(dim)


def measure(
    parts: Sequence[Part],
    live: NDArray[np.bool_],
    settings: GallerySettings,
    queries: Sequence[NDArray[np.float32]],
    basis: NDArray[np.floating],
    axes: NDArray[np.floating],
) -> FastScan:
    """Choose the share of rows to rescore on every other query, and measure its recall on the rest."""
    if len(queries) < 2 or not live.any():
        return FastScan(basis, axes, 2, 0.05, None, _K, 0)
    pool = Pool()
    try:
        kernel, rows = open_kernel(), GalleryRows(parts, settings.kind, settings.alignment)
        one, two = (Ranker(rows, CpuEstimator(rows, kernel, pool, planes), kernel, pool) for planes in (1, 2))
        choosing, held_out = queries[::2], queries[1::2]
        exact = two.exact(choosing, _K, live)
        dearer = rescored(one.exact(choosing, _K, live)) - rescored(exact)
        planes = 1 if dearer <= _PLANE_WORTH * np.count_nonzero(live) else 2
        share = _SHARES[-1]
        for candidate in _SHARES:
            if recall(two.fast(choosing, _K, live, candidate), exact) >= _WANTED:
                share = candidate
                break
        found = recall(two.fast(held_out, _K, live, share), two.exact(held_out, _K, live))
    finally:
        pool.close()
    return FastScan(basis, axes, planes, share, found, _K, len(held_out))


def rescored(rankings: Sequence[Ranking]) -> float:
    """Rows rescored for one query, on average."""
    return float(np.mean([ranking.rescored for ranking in rankings]))


def recall(found: Sequence[Ranking], exact: Sequence[Ranking]) -> float:
    """The share of the exact rankings' rows that the found ones hold."""
    hits = sum(len(np.intersect1d(a.rows, b.rows)) for a, b in zip(found, exact, strict=True))
    return hits / max(1, sum(len(ranking.rows) for ranking in exact))


def load_fast(record: FastRecord | None, segments: Path, dim: int) -> FastScan | None:
    """The fast scan that a catalogue keeps.

    Raises:
        FileNotFoundError: its file is missing.
        GalleryCorrupt: its file is damaged, or not what a gallery of this width D can have.
    """
    if record is None:
        return None
    opened = MappedFile(segments, record.file)
    columns = [opened.shape(name)[-1] for name in ("basis", "axes")]
    for name, count in zip(("basis", "axes"), columns, strict=True):
        opened.expect(name, np.float32, dim, count)
    basis, axes = (opened.read(name).astype(np.float64) for name in ("basis", "axes"))  # once, not for every query
    if not 1 <= columns[0] <= dim or columns[1] > dim or not (np.isfinite(basis).all() and np.isfinite(axes).all()):
        raise GalleryCorrupt(f"{opened.path}: basis and axes must be finite and have from 1 (0) to {dim} columns")
    return FastScan(basis, axes, **{name: getattr(record, name) for name in MEASURED})
