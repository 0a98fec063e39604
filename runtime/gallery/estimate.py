"""The estimator on the CPU: a kernel scans rows' codes, and bounds.py limits how far scores can be off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .kernels.base import WIDE, Kernel, Over, PackedQueries
from .kernels.pool import Pool
from .proof.bounds import QuantizedQuery, quantize_query
from .proof.gallery_rows import GalleryRows
from .proof.intervals import Intervals, score_radius, similarity_changes
from .proof.pooling import Float64Array, pool_groups
from .proof.rows import Part

_BLOCK_BYTES = 4 << 20  # below which passing Python's lock on takes longer than a second thread saves
_SOME = 64  # rows that a thread gathers at a time
_WIDE_BLOCK_BYTES = 512 << 10  # of a wide scan: the block and a group of words fit in L2


class CpuEstimator:
    """Scores from codes, by a kernel on the CPU; immutable.

    Args:
        gallery: the rows.
        kernel: the scan.
        pool: the threads it runs on.
        planes: number of planes of queries' codes in a scan of every row, 1 or 2. The result is the same; the number of
            rows that are rescored is not. Without a fine copy nothing is rescored, and 2 are used.
    """

    certified = True

    def __init__(self, gallery: GalleryRows, kernel: Kernel, pool: Pool, planes: int = 2) -> None:
        self._gallery = gallery
        self._kernel = kernel
        self._pool = pool
        self._planes = planes if gallery.has_fine else 2
        self._over: Over = "row" if gallery.pools_query else "query"

    def intervals(
        self, queries: Sequence[NDArray[np.float32]], k: int, rows: NDArray[np.int64]
    ) -> Callable[[int], Intervals]:
        """See `Estimator.intervals`: all of `rows`, whatever k is."""
        quantized = [self._quantize(query, self._planes) for query in queries]
        changes: list[Float64Array] = []
        scores, spread = self._scan(quantized, lambda: changes.append(similarity_changes(self._gallery, quantized)))

        def of(i: int) -> Intervals:
            radius = score_radius(self._gallery, quantized[i], changes[0][i], spread[i])
            return Intervals(rows, scores[i][rows], radius[rows])

        return of

    def of_rows(self, query: NDArray[np.float32], rows: NDArray[np.int64]) -> Intervals:
        """The intervals of some rows, of whose codes alone anything is read.

        Args:
            query: the query's vectors [Q, D].
            rows: ascending, at least one.
        """
        gallery = self._gallery
        quantized = self._quantize(query, self._planes)
        packed, scale = self._pack([quantized])
        scores, spread = np.empty((2, len(rows)))

        def task(part: Part, local: NDArray[np.int64], places: NDArray[np.int64]) -> None:
            stored = np.concatenate([part.codes(row, row + 1) for row in local.tolist()])
            row_starts = np.cumsum(np.r_[0, part.starts[local + 1] - part.starts[local]])
            pooled = self._pooled(stored, row_starts, part.scale[local], packed, scale)
            scores[places], spread[places] = pooled[0][0], pooled[1][0]

        self._pool.run(
            partial(task, part, local[a : a + _SOME], places[a : a + _SOME])
            for part, local, places in gallery.by_part(rows)
            for a in range(0, len(local), _SOME)
        )
        change = similarity_changes(gallery, [quantized], rows)[0]
        return Intervals(rows, scores, score_radius(gallery, quantized, change, spread, rows))

    def _quantize(self, query: NDArray[np.float32], planes: int) -> QuantizedQuery:
        return quantize_query(query, per_vector=self._gallery.pools_query, planes=planes)

    def _pack(self, queries: Sequence[QuantizedQuery]) -> tuple[PackedQueries, Float64Array]:
        """The queries as the kernel reads them, and the scale of each column of its maxima."""
        starts = np.cumsum([0] + [query.count for query in queries])
        planes = np.concatenate([query.planes for query in queries], axis=1)
        scales = [query.scale if self._gallery.pools_query else query.scale[:1] for query in queries]
        return self._kernel.pack(planes, starts, self._over), np.concatenate(scales)

    def _pooled(
        self,
        stored: NDArray[np.uint8],
        row_starts: NDArray[np.int64],
        row_scale: NDArray[np.float32],
        packed: PackedQueries,
        scale: Float64Array,
    ) -> tuple[Float64Array, Float64Array]:
        """Pooled similarities of some rows from their codes, and their spread: [queries, rows] each."""
        gallery = self._gallery
        products = self._kernel.maxima(stored, row_starts, packed)  # [rows, Q], or [V, queries]
        if gallery.pools_query:
            similarities = np.multiply(products.T, scale[:, None], order="C")
            similarities *= row_scale.astype(np.float64)
            return pool_groups(similarities, packed.starts, gallery.alignment)
        similarities = products * scale
        similarities *= np.repeat(row_scale.astype(np.float64), np.diff(row_starts))[:, None]
        pooled, spread = pool_groups(similarities, row_starts, gallery.alignment)
        return pooled.T, spread.T

    # -- every row

    def _scan(
        self, queries: Sequence[QuantizedQuery], meanwhile: Callable[[], object]
    ) -> tuple[Float64Array, Float64Array]:
        """Scores from codes and, for Softmax pooling, the spread of the pooled similarities: [queries, N] each.

        meanwhile: is done on one of the threads.
        """
        gallery = self._gallery
        packed, scale = self._pack(queries)
        scores = np.empty((len(queries), gallery.count))
        softmax = gallery.alignment.pooling == "Softmax"
        spread = np.empty_like(scores) if softmax else np.broadcast_to(0.0, scores.shape)

        def task(index: int, first: int, last: int) -> None:
            part = gallery.parts[index]
            row_starts = part.starts[first : last + 1] - part.starts[first]
            pooled = self._pooled(part.codes(first, last), row_starts, part.scale[first:last], packed, scale)
            columns = slice(gallery.bases[index] + first, gallery.bases[index] + last)
            scores[:, columns] = pooled[0]
            if softmax:
                spread[:, columns] = pooled[1]

        width = gallery.parts[0].codes(0, 0).shape[1]
        self._pool.run([meanwhile, *(partial(task, *block) for block in self._blocks(int(packed.starts[-1]), width))])
        return scores, spread

    def _blocks(self, vectors: int, width: int) -> list[tuple[int, int, int]]:
        """(part, first row, last row) of blocks that cover all rows and hold about the same bytes.

        vectors: of all queries together; width: bytes of a stored vector.
        """
        parts = self._gallery.parts
        stored = sum(int(part.starts[-1]) for part in parts) * width
        share = -(-stored // (4 * self._pool.threads))  # so that all threads end at about the same time
        target = min(max(share, _BLOCK_BYTES), self._kernel.block_bytes)
        if vectors > WIDE:
            target = _WIDE_BLOCK_BYTES
        blocks = []
        for index, part in enumerate(parts):
            count = len(part.starts) - 1
            if count == 0:
                continue
            pieces = max(1, min(count, -(-int(part.starts[-1]) * width // target)))
            edges = np.linspace(0, count, pieces + 1).astype(np.int64)
            blocks += [(index, int(a), int(b)) for a, b in pairwise(edges)]
        return blocks
