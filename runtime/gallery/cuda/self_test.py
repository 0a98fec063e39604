"""A known answer of every kernel, before a gallery is trusted to it.

The kernels of each architecture are other code, made by a compiler of another version, and no test ran most of them. So
whoever opens a gallery on a GPU first asks it about some rows whose answer is known here. It finds kernels that compute
something else, not bounds that are a little too narrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ...contract import AlignmentConfig
from ...counts import counted
from ...errors import BackendError
from ..proof.pooling import Float64Array, pool
from ..proof.prefix import (
    AXES,
    Axes,
    PrefixLevel,
    SearchPlan,
    deviation_of,
    fit_level,
    largest_coordinates,
    level_widths,
    rotate,
)
from ..proof.rows import ArrayPart, array_part
from ..settings import Precision
from .decide import Decided
from .held import HeldRows
from .kernels import PICKS
from .list_queue import BEYOND
from .resident import Listed
from .scan import KernelScan

_ROWS, _LONGEST = 80, 17
_LENGTHS = (1, 5, 9, 12, 20, 25, 40, 70)  # of the queries that are asked at once: of each kind that has a kernel
_ALONE = (3, 40)
_K = 5
_FAR = 1e-9  # as a share of the largest score: far more than float64 loses, far less than a wrong number is off
_HALF = 0.02  # what half can be off, in the same unit

_Query = NDArray[np.float32]


class _Truth:
    """Some rows and their similarities with queries, by numpy in float64.

    Args:
        rows: the vectors of each row [V_i, D].
        queries: the vectors of each query [Q_i, D].
        alignment: how similarities become scores.
    """

    def __init__(self, rows: Sequence[NDArray[np.floating]], queries: Sequence[_Query], alignment: AlignmentConfig):
        vectors = np.concatenate(rows).astype(np.float64)
        self._starts = np.cumsum([0, *map(len, rows)])[:-1]
        self._products = [vectors @ query.T.astype(np.float64) for query in queries]
        self.maxima = [np.maximum.reduceat(each, self._starts, axis=0) for each in self._products]  # [rows, Q_i]
        self.scores = [pool(each, alignment) for each in self.maxima]
        self.slack = [_FAR * max(1.0, float(np.abs(each).max())) for each in self.scores]

    def best(self, which: int, k: int) -> set[int]:
        """The rows of a query that nobody may miss among the best k: those of larger scores than the next one."""
        scores = self.scores[which]
        least = np.sort(scores)[-min(k, len(scores))]
        return set(np.flatnonzero(scores >= least + self.slack[which]).tolist())

    def holds(self, which: int, row: int, maxima: Float64Array, winners: NDArray[np.int32]) -> bool:
        """Whether these are a row's largest similarities with a query, and the vectors that reach them."""
        if not 0 <= row < len(self._starts):
            return False
        own, slack = self.maxima[which][row], self.slack[which]
        if not (np.abs(maxima - own) <= slack).all() or winners.min() < 0:
            return False
        ends = np.append(self._starts, len(self._products[which]))
        reached = self._products[which][self._starts[row] : ends[row + 1]]
        return bool(winners.max() < len(reached) and (own - reached[winners, np.arange(len(own))] <= slack).all())


def check_kernels(scan: KernelScan, dim: int, alignment: AlignmentConfig, form: Precision) -> None:
    """Ask a scan about rows of D values whose answer is known; afterwards it holds none of them.

    form: of the fine copy that `decide` will read.

    Raises:
        BackendError: an answer is wrong; the message says which, and what to do.
    """
    rng = np.random.default_rng(0)
    weights = np.float32(1) / np.arange(1, dim + 1, dtype=np.float32)  # the first axes tell most, as of a real gallery
    lengths = rng.integers(1, _LONGEST + 1, _ROWS)
    starts = np.cumsum([0, *lengths]).astype(np.int64)
    vectors = rng.standard_normal((int(starts[-1]), dim), np.float32) * weights
    queries = [rng.standard_normal((length, dim), np.float32) * weights for length in (*_LENGTHS, *_ALONE)]
    part = array_part(vectors, starts, form, plan=_plan(vectors))
    truth = _Truth([part.fine(row) for row in range(_ROWS)], queries, alignment)
    for what, wrong in _wrong_answers(scan, part, queries, truth):
        if wrong:
            raise BackendError(
                f"{scan.name} computes wrong numbers on this GPU, {what} of a test among them: search with "
                "device='cpu', and compile the kernels again with another version of Triton (chan gallery kernel)"
            )


def _plan(vectors: NDArray[np.float32]) -> SearchPlan:
    """Axes along the first coordinates, and levels where D allows them."""
    dim = vectors.shape[1]
    basis = np.eye(min(AXES, dim), dim, dtype=np.float32)
    axes = Axes(np.zeros(dim, np.float32), basis, deviation_of(basis))
    levels: list[PrefixLevel | None] = [None, None]
    if (widths := level_widths(dim)) is not None:
        rotated, largest = rotate(vectors, axes), largest_coordinates(vectors, axes)
        levels = [fit_level(rotated, largest, width) for width in widths]
    return SearchPlan(axes, levels[0], levels[1], 2)


def _wrong_answers(
    scan: KernelScan, part: ArrayPart, queries: Sequence[_Query], truth: _Truth
) -> Iterator[tuple[str, bool]]:
    """What was asked, and whether a kernel's answer is wrong: all queries at once, and two alone, with levels too."""
    many = list(range(len(_LENGTHS)))
    held = scan.hold(part)
    rows = scan.gather([held])
    larger = PICKS[0] - BEYOND + 1  # than the smaller `reach` takes
    repeated = many[:4] * 4  # so many that the smaller `select` takes what is decided ahead of each
    for own, k in ((many, _K), (many, larger), (repeated, _K), ([-2], _K), ([-1], _K)):
        yield from _of_search(scan, rows, own, k, queries, truth)
    if scan.certified:
        rows = scan.gather([held], 0)
        for own in ([-2], [-1]):
            yield from _of_search(scan, rows, own, _K, queries, truth)
            if rows.levels is not None:
                yield (
                    f"the first level for {counted(len(queries[own[0]]), 'word')}",
                    _is_loose(scan, rows, own[0], truth),
                )


def _of_search(
    scan: KernelScan, rows: HeldRows, own: Sequence[int], k: int, queries: Sequence[_Query], truth: _Truth
) -> Iterator[tuple[str, bool]]:
    asked, everything, floors = [queries[i] for i in own], np.ones(_ROWS, bool), np.full(len(own), -np.inf)
    for i, listed in zip(own, scan.shortlist(rows, asked, k, everything, floors), strict=True):
        yield f"the list for {counted(len(queries[i]), 'word')}", _is_wrong(scan, listed, i, k, truth)
    decide = scan.decider(rows)
    if decide is None:
        return
    several: list[Decided] = []
    decide(asked, k, everything, floors, len(own), several.append)
    for decided in several:
        for place, number in enumerate(decided.numbers.tolist()):
            i, pairs = own[number], np.flatnonzero(decided.queries == place)
            missed = not truth.best(i, k) <= set(decided.rows[pairs].tolist())
            length = len(queries[i])
            off = not all(
                truth.holds(i, int(decided.rows[p]), decided.maxima[p, :length], decided.winners[p, :length])
                for p in pairs
            )
            yield f"the decision for {counted(length, 'word')}", missed or off


def _is_loose(scan: KernelScan, rows: HeldRows, which: int, truth: _Truth) -> bool:
    """Whether a bound of the first level is below the true score, or the level left too many rows."""
    if scan.left is None:
        return True
    bounds, scores = scan.fetch_bounds(rows), truth.scores[which]
    below = not (bounds >= scores - truth.slack[which]).all()
    return below or int((bounds < np.sort(scores)[-_K]).sum()) * 2 < _ROWS


def _is_wrong(scan: KernelScan, listed: Listed, which: int, k: int, truth: _Truth) -> bool:
    """Whether a list misses one of the best rows, or a score on it is further off than its bound."""
    if len(listed.rows) == 0 or listed.rows[-1] >= _ROWS or not np.isfinite(listed.scores).all():
        return True
    off = np.abs(listed.scores - truth.scores[which][listed.rows])
    if not scan.certified:
        return bool((off > _HALF * max(1.0, float(np.abs(truth.scores[which]).max()))).any())
    return not truth.best(which, k) <= set(listed.rows.tolist()) or bool(
        (off > listed.radii + truth.slack[which]).any()
    )
