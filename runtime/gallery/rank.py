"""The certified top k: scan every row's codes, bound every score, score again the few that could be best.

The truth is `true_score`: one row against one query on the fine copy in float64. `Ranker.exact` returns the k rows with
the highest true score, ties by lower row, and is proven (bounds.py) to return what scoring every row would.
`Ranker.fast` is the same search over the rows that a scan of a short prefix likes best; that choice is not proven.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise, repeat, starmap

import numpy as np
from numpy.typing import NDArray

from ..contract import AlignmentConfig
from .kernels.base import Kernel, Over, PackedQueries
from .kernels.pool import Pool
from .proof.blas import product
from .proof.bounds import (
    QuantizedQuery,
    Reach,
    float32_similarity_error,
    int8_radius,
    kth_largest,
    no_axes,
    quantize_query,
    rounding,
)
from .proof.pooling import Array, pool_groups, pools_query, score_change
from .proof.rows import Part
from .proof.true_score import TrueRow, true_row, true_rows
from .settings import Kind

_BLOCK_BYTES = 4 << 20  # below which passing Python's lock on takes longer than a second thread saves
_WIDE_BLOCK_BYTES = 512 << 10  # when many words make it bound by arithmetic: the block and a group of words fit in L2
_WIDE = 64  # query vectors from which on that is so
_FEW_ROWS = 128  # that are sooner scored from the fine copy than narrowed down by their codes
_ESTIMATE_BYTES = 256 << 20  # of estimates held at once; more queries are served in turns
_TURN = 64  # queries scanned together: enough for the scan to be bound by arithmetic
_FIRST_RESCORED = 22  # rows rescored beyond k before the threshold is looked at again; then twice as many


@dataclass(frozen=True)
class Ranking:
    """The best rows for one query.

    Attributes:
        rows: the rows, best first; ties by lower row.
        scores: float64, true scores; estimates from codes where the gallery keeps no fine copy.
        details: for each row its true score's similarities; None where there is no fine copy.
        candidates: rows the search chose among (all that were allowed; fewer in fast mode).
        rescored: rows that were scored again from the fine copy.
        certified: whether the ranking is proven to be that of exhaustive scoring.
    """

    rows: NDArray[np.int64]
    scores: Array
    details: tuple[TrueRow, ...] | None
    candidates: int
    rescored: int
    certified: bool


class Ranker:
    """Ranks the rows of some parts; immutable, so any number of threads may use one.

    Args:
        parts: consecutive rows; row numbers run on from part to part.
        kind: what the rows are.
        alignment: how similarities become scores.
        kernel: the scan.
        pool: the threads it runs on.
        planes: of queries' codes in a certified scan, 1 or 2: the result is the same, what is rescored is not.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        kind: Kind,
        alignment: AlignmentConfig,
        kernel: Kernel,
        pool: Pool,
        planes: int = 2,
    ) -> None:
        self.parts = tuple(parts)
        self.kind: Kind = kind
        self.alignment = alignment
        self._kernel = kernel
        self._pool = pool
        self._planes = planes
        self._pools_query = pools_query(kind, alignment)
        self._over: Over = "row" if self._pools_query else "query"
        self._bases = np.cumsum([0] + [len(part.starts) - 1 for part in self.parts])

    @property
    def count(self) -> int:
        """N, rows of all parts, deleted ones too."""
        return int(self._bases[-1])

    @cached_property
    def _error(self) -> NDArray[np.float32]:
        return np.concatenate([part.error for part in self.parts])

    @cached_property
    def _norm(self) -> NDArray[np.float32]:
        return np.concatenate([part.norm for part in self.parts])

    @cached_property
    def _lengths(self) -> Array:
        return np.concatenate([np.diff(part.starts) for part in self.parts]).astype(np.float64)

    def exact(self, queries: Sequence[NDArray[np.float32]], k: int, allowed: NDArray[np.bool_]) -> list[Ranking]:
        """The certified top k of each query's vectors [Q_i, D] among the rows where `allowed` [N] is True."""
        if not allowed.any():
            return [_nothing() for _ in queries]
        if not all(part.has_fine for part in self.parts):
            return self._by_codes(queries, k, allowed)
        if self.alignment.coding == "VSA":
            return [self._exhaustive(query, k, allowed) for query in queries]
        rows = np.flatnonzero(allowed)
        return self._in_turns(queries, lambda turn: self._exact_turn(turn, k, rows))

    def fast(
        self, queries: Sequence[NDArray[np.float32]], k: int, allowed: NDArray[np.bool_], share: float
    ) -> list[Ranking]:
        """The certified top k among the best `share` of the allowed rows (at least 4 k) by the prefix scan."""
        keep = max(4 * k, int(np.ceil(share * np.count_nonzero(allowed))))
        rows = np.flatnonzero(allowed)
        if keep >= len(rows):
            return self.exact(queries, k, allowed)
        return self._in_turns(queries, lambda turn: self._fast_turn(turn, k, rows, keep))

    def _in_turns(
        self,
        queries: Sequence[NDArray[np.float32]],
        rank: Callable[[Sequence[NDArray[np.float32]]], list[Ranking]],
    ) -> list[Ranking]:
        """Rank the queries in pieces whose estimates fit the memory set aside for them, one piece a thread.

        So while one thread computes rankings, which Python's lock lets only one do, the others scan.
        """
        threads = self._pool.threads
        size = min(_TURN, max(1, _ESTIMATE_BYTES // (16 * self.count * threads)), -(-len(queries) // (2 * threads)))
        if sum(len(query) for query in queries) <= _WIDE:
            size = len(queries)
        done: dict[int, list[Ranking]] = {}

        def task(first: int) -> None:
            done[first] = rank(queries[first : first + size])

        firsts = range(0, len(queries), max(1, size))
        if len(firsts) == 1:
            task(0)
        else:
            self._pool.run([partial(task, first) for first in firsts])
        return [ranking for first in firsts for ranking in done[first]]

    def _exact_turn(self, queries: Sequence[NDArray[np.float32]], k: int, rows: NDArray[np.int64]) -> list[Ranking]:
        quantized = [quantize_query(query, per_vector=self._pools_query, planes=self._planes) for query in queries]
        changes: list[Array] = []
        scores, spread = self._scan(quantized, lambda: changes.append(self._changes(quantized)))

        def certify(i: int) -> Ranking:
            radius = self._radius(quantized[i], changes[0][i], spread[i])
            lower, upper = scores[i] - radius, scores[i] + radius
            return self._rescore(queries[i], quantized[i], rows, lower[rows], upper[rows], k)

        return self._each(certify, len(queries))

    def _fast_turn(
        self, queries: Sequence[NDArray[np.float32]], k: int, rows: NDArray[np.int64], keep: int
    ) -> list[Ranking]:
        scores = self._scan_prefix(queries)

        def among(i: int) -> Ranking:
            estimate = scores[i, rows]
            best = np.argpartition(estimate, len(estimate) - keep)[-keep:]
            return self._among(queries[i], k, np.sort(rows[best]))

        return self._each(among, len(queries))

    def _each(self, rank: Callable[[int], Ranking], count: int) -> list[Ranking]:
        """rank(0), ..., rank(count - 1), on the pool's threads; a single one in the caller's."""
        if count == 1:
            return [rank(0)]
        done: dict[int, Ranking] = {}

        def task(first: int, last: int) -> None:
            for i in range(first, last):
                done[i] = rank(i)

        step = max(1, count // (4 * self._pool.threads))
        self._pool.run([partial(task, a, min(a + step, count)) for a in range(0, count, step)])
        return [done[i] for i in range(count)]

    # -- scans

    def _blocks(self, columns: int, width: int) -> list[tuple[int, int, int]]:
        """(part, first row, last row) covering all rows in pieces of about the same bytes."""
        stored = sum(int(part.starts[-1]) for part in self.parts) * width
        share = -(-stored // (4 * self._pool.threads))  # so that all threads end at about the same time
        target = min(max(share, _BLOCK_BYTES), self._kernel.block_bytes)
        if columns > _WIDE:
            target = _WIDE_BLOCK_BYTES
        blocks = []
        for index, part in enumerate(self.parts):
            rows = len(part.starts) - 1
            if rows == 0:
                continue
            pieces = max(1, min(rows, -(-int(part.starts[-1]) * width // target)))
            edges = np.linspace(0, rows, pieces + 1).astype(np.int64)
            blocks += [(index, int(a), int(b)) for a, b in pairwise(edges)]
        return blocks

    def _scan(
        self, queries: Sequence[QuantizedQuery], meanwhile: Callable[[], object] | None = None
    ) -> tuple[Array, Array]:
        """Scores from codes and, for Softmax pooling, the spread of the pooled similarities: [queries, N] each.

        meanwhile: is done on one of the threads.
        """
        planes = np.concatenate([query.planes for query in queries], axis=1)
        starts = np.cumsum([0] + [query.count for query in queries])
        packed = self._kernel.pack(planes, starts, self._over)
        if self._pools_query:
            scale = np.concatenate([query.scale for query in queries])
        else:
            scale = np.array([query.scale[0] for query in queries])
        scores = np.empty((len(queries), self.count))
        softmax = self.alignment.pooling == "Softmax"
        spread = np.empty_like(scores) if softmax else np.broadcast_to(0.0, scores.shape)

        def task(index: int, first: int, last: int) -> None:
            part = self.parts[index]
            row_starts = part.starts[first : last + 1] - part.starts[first]
            pooled = self._estimate(part.codes(first, last), row_starts, part.scale[first:last], packed, scale, starts)
            columns = slice(self._bases[index] + first, self._bases[index] + last)
            scores[:, columns] = pooled[0]
            if softmax:
                spread[:, columns] = pooled[1]

        width = self.parts[0].codes(0, 0).shape[1]
        tasks: list[Callable[[], object]] = [partial(task, *block) for block in self._blocks(int(starts[-1]), width)]
        self._pool.run([meanwhile, *tasks] if meanwhile is not None else tasks)
        return scores, spread

    def _estimate(
        self,
        stored: NDArray[np.uint8],
        row_starts: NDArray[np.int64],
        row_scale: NDArray[np.float32],
        packed: PackedQueries,
        scale: Array,
        starts: NDArray[np.int64],
    ) -> tuple[Array, Array]:
        """Pooled similarities of a block of rows from its codes, and their spread: [queries, rows] each."""
        if self._pools_query:
            products = self._kernel.maxima(stored, row_starts, packed)  # [rows, Q]
            similarities = np.multiply(products.T, scale[:, None], order="C")
            similarities *= row_scale.astype(np.float64)
            return pool_groups(similarities, starts, self.alignment)
        products = self._kernel.maxima(stored, row_starts, packed)  # [V, queries]
        similarities = products * scale
        similarities *= np.repeat(row_scale.astype(np.float64), np.diff(row_starts))[:, None]
        pooled, spread = pool_groups(similarities, row_starts, self.alignment)
        return pooled.T, spread.T

    def _scan_prefix(self, queries: Sequence[NDArray[np.float32]]) -> Array:
        """Estimates of the scores from the prefixes' codes: [queries, N]."""
        scores = np.empty((len(queries), self.count))
        starts = np.cumsum([0] + [len(query) for query in queries])
        packs: dict[int, tuple[PackedQueries, Array]] = {}
        for part in self.parts:
            prefix = part.prefix
            if prefix is None or id(prefix.basis) in packs:
                continue
            quantized = [
                quantize_query(product(query, prefix.basis), per_vector=self._pools_query, planes=1)
                for query in queries
            ]
            packed = self._kernel.pack(
                np.concatenate([query.planes for query in quantized], axis=1), starts, self._over
            )
            scale = [query.scale if self._pools_query else query.scale[:1] for query in quantized]
            packs[id(prefix.basis)] = packed, np.concatenate(scale)

        def task(index: int, first: int, last: int) -> None:
            part = self.parts[index]
            prefix = part.prefix
            columns = slice(self._bases[index] + first, self._bases[index] + last)
            if prefix is None:  # too few rows to have earned one: never leave them out
                scores[:, columns] = np.inf
                return
            packed, scale = packs[id(prefix.basis)]
            row_starts = part.starts[first : last + 1] - part.starts[first]
            stored = part.prefix_codes(first, last)
            scores[:, columns], _ = self._estimate(stored, row_starts, prefix.scale[first:last], packed, scale, starts)

        width = max((part.prefix.basis.shape[1] for part in self.parts if part.prefix is not None), default=1)
        self._pool.run([partial(task, *block) for block in self._blocks(int(starts[-1]), width)])
        return scores

    # -- from estimates to a certified ranking

    def fine(self, row: int) -> NDArray[np.floating]:
        """The fine copy of one row: [vectors, D]."""
        return self._fine_rows(np.array([row]))[0]

    def _fine_rows(self, rows: NDArray[np.int64]) -> list[NDArray[np.floating]]:
        owner = np.searchsorted(self._bases, rows, side="right") - 1
        local = rows - self._bases[owner]
        return [self.parts[index].fine(row) for index, row in zip(owner.tolist(), local.tolist(), strict=True)]

    def _places(self, rows: NDArray[np.int64]) -> Iterator[tuple[Part, NDArray[np.int64], NDArray[np.int64]]]:
        """Each part that holds some of the rows: which of its own they are, and which of `rows`."""
        owner = np.searchsorted(self._bases, rows, side="right") - 1
        for index in np.unique(owner):
            mine = np.flatnonzero(owner == index)
            yield self.parts[index], rows[mine] - self._bases[index], mine

    def _changes(self, queries: Sequence[QuantizedQuery], rows: NDArray[np.int64] | None = None) -> Array:
        """How far any similarity of each row (every one by default) can be off: [queries, rows]."""
        change = np.empty((len(queries), self.count if rows is None else len(rows)))
        reaches: dict[tuple[int, int], Reach] = {}
        every = zip(self.parts, repeat(slice(None)), starmap(slice, pairwise(self._bases)), strict=False)
        for part, local, place in every if rows is None else self._places(rows):
            basis, norms = no_axes(queries[0].dim), part.blocks[:, :0]
            if part.prefix is not None and len(queries[0].planes) == 1:  # two lose next to nothing
                basis, norms = part.prefix.basis, part.prefix.norms
            key = id(part.axes), id(basis)  # parts prepared together share them
            if key not in reaches:
                reaches[key] = Reach(queries, part.axes, basis)
            measured = part.error[local], part.norm[local], part.blocks[local], norms[local]
            change[:, place] = reaches[key].change(*measured)
        return change

    def _radius(
        self, query: QuantizedQuery, change: Array, spread: Array, rows: NDArray[np.int64] | slice = slice(None)
    ) -> Array:
        """How far the scores of rows from their codes can be from the true ones; change and spread are of those."""
        count = query.count if self._pools_query else self._lengths[rows]
        return int8_radius(change, self._error[rows], self._norm[rows], query, count, spread, self.alignment)

    def _among(self, query: NDArray[np.float32], k: int, rows: NDArray[np.int64]) -> Ranking:
        """The certified top k of some rows: by their codes, gathered and scanned, or straight from the fine copy."""
        quantized = quantize_query(query, per_vector=self._pools_query)
        if len(rows) <= _FEW_ROWS:
            nothing_known = np.full(len(rows), np.inf)
            return self._rescore(query, quantized, rows, -nothing_known, nothing_known, k)
        starts = np.array([0, len(query)])
        packed = self._kernel.pack(quantized.planes, starts, self._over)
        scale = quantized.scale if self._pools_query else quantized.scale[:1]
        estimate, spread = np.empty((2, len(rows)))
        for part, local, mine in self._places(rows):
            lengths = part.starts[local + 1] - part.starts[local]
            stored = np.concatenate([part.codes(row, row + 1) for row in local])
            pooled = self._estimate(stored, np.r_[0, np.cumsum(lengths)], part.scale[local], packed, scale, starts)
            estimate[mine], spread[mine] = pooled[0][0], pooled[1][0]
        radius = self._radius(quantized, self._changes([quantized], rows)[0], spread, rows)
        return self._rescore(query, quantized, rows, estimate - radius, estimate + radius, k)

    def _rescore(
        self,
        query: NDArray[np.float32],
        quantized: QuantizedQuery,
        rows: NDArray[np.int64],
        lower: Array,
        upper: Array,
        k: int,
    ) -> Ranking:
        """From intervals that hold the true scores to the true top k.

        Rows are taken by falling upper bound and scored in float32, which is within a proven distance of float64; each
        score sharpens the threshold, and the first upper bound below it ends the search. What the float32 intervals
        leave undecided, a handful of rows, is scored in float64.
        """
        threshold = kth_largest(lower, k)
        candidates = np.flatnonzero(upper >= threshold)
        candidates = candidates[np.argsort(-upper[candidates], kind="stable")]
        fine: list[NDArray[np.floating]] = []
        similarities: list[NDArray[np.float32]] = []
        low, high = np.empty((2, len(candidates)))
        done = 0
        while done < len(candidates) and upper[candidates[done]] >= threshold:
            within = int(np.searchsorted(-upper[candidates], -threshold, side="right"))
            stop = min(within, k + _FIRST_RESCORED if done == 0 else 2 * done)
            piece = candidates[done:stop]
            fine += self._fine_rows(rows[piece])
            starts = np.cumsum([0] + [len(vectors) for vectors in fine[done:]])
            new = self._kernel.products(fine[done:], query)
            score, radius = self._float32_scores(new, starts, rows[piece], quantized)
            low[done:stop], high[done:stop] = score - radius, score + radius
            similarities += [new[a:b] for a, b in pairwise(starts)]
            done = stop
            threshold = max(threshold, kth_largest(low[:done], k))
        contenders = np.flatnonzero(high[:done] >= threshold)
        chosen = rows[candidates[contenders]]
        slack = self._float32_error(chosen, quantized)
        details = true_rows(
            [fine[i] for i in contenders],
            query,
            [similarities[i] for i in contenders],
            2 * slack,
            self.kind,
            self.alignment,
        )
        order = sorted(range(len(chosen)), key=lambda i: (-details[i].score, chosen[i]))[:k]
        best = tuple(details[i] for i in order)
        return Ranking(chosen[order], np.array([d.score for d in best]), best, len(rows), done, certified=True)

    def _fine_norm(self, rows: NDArray[np.int64]) -> Array:
        return self._norm[rows].astype(np.float64) + self._error[rows]

    def _float32_error(self, rows: NDArray[np.int64], query: QuantizedQuery) -> Array:
        roundings = self._kernel.roundings(query.dim)
        return float32_similarity_error(query.dim, roundings, query.norm, self._fine_norm(rows))

    def _float32_scores(
        self,
        similarities: NDArray[np.float32],
        starts: NDArray[np.int64],
        rows: NDArray[np.int64],
        query: QuantizedQuery,
    ) -> tuple[Array, Array]:
        """Scores of rows from float32 similarities [sum of L, Q], and how far they can be from the true ones.

        starts: row i is similarities[starts[i]:starts[i + 1]].
        """
        if self._pools_query:
            reduced = np.maximum.reduceat(similarities, starts[:-1], axis=0)
            counts = np.full(len(rows), query.count)
        else:
            reduced, counts = similarities.max(axis=1), np.diff(starts)
        pooled_starts = np.r_[0, np.cumsum(counts)]
        pooled, spread = pool_groups(reduced.astype(np.float64).reshape(-1, 1), pooled_starts, self.alignment)
        similarity = query.norm * self._fine_norm(rows)
        change = self._float32_error(rows, query) + rounding(similarity, query.dim, counts, self.alignment)
        return pooled[:, 0], score_change(change, counts, spread[:, 0], self.alignment)

    # -- without bounds

    def _exhaustive(self, query: NDArray[np.float32], k: int, allowed: NDArray[np.bool_]) -> Ranking:
        """Score every allowed row from the fine copy: certified by construction (VSA, whose bounds prune nothing)."""
        rows = np.flatnonzero(allowed)
        scores = np.empty(len(rows))

        def task(first: int, last: int) -> None:
            for i in range(first, last):
                scores[i] = true_row(self.fine(int(rows[i])), query, self.kind, self.alignment).score

        step = max(1, -(-len(rows) // (4 * self._pool.threads)))
        self._pool.run([partial(task, a, min(a + step, len(rows))) for a in range(0, len(rows), step)])
        order = np.lexsort((rows, -scores))[:k]
        best = rows[order]
        details = tuple(true_row(self.fine(int(row)), query, self.kind, self.alignment) for row in best)
        return Ranking(best, scores[order], details, len(rows), len(rows), certified=True)

    def _by_codes(self, queries: Sequence[NDArray[np.float32]], k: int, allowed: NDArray[np.bool_]) -> list[Ranking]:
        """Rank by the codes alone: the gallery keeps no fine copy, so nothing is certified."""
        rows = np.flatnonzero(allowed)
        rankings = []
        for query in queries:
            quantized = quantize_query(query, per_vector=self._pools_query)
            estimate = self._scan([quantized])[0][0][rows]
            order = np.lexsort((rows, -estimate))[:k]
            rankings.append(Ranking(rows[order], estimate[order], None, len(rows), 0, certified=False))
        return rankings


def _nothing() -> Ranking:
    """The ranking of no rows: trivially that of exhaustive scoring."""
    return Ranking(np.zeros(0, np.int64), np.zeros(0), (), 0, 0, certified=True)
