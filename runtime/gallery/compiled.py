"""The compiled search: a query's certified top k in one call that holds no lock of Python's.

`_core` is C++ (core/), built for this CPU's instruction sets where a compiler was at hand. It does what estimate.py,
intervals.py and certify.py do, and first of all bounds rows by their prefixes (proof/prefix.py). The last step, pooling
a handful of rows in float64, is left to pooling.py, so scores do not depend on what found them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import cache, partial
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cpus import usable_cpus
from ..errors import BackendError, InputError
from ..forks import now_and_after_fork
from .proof.bounds import block_edges
from .proof.certify import Ranking, contradiction
from .proof.gallery_rows import GalleryRows
from .proof.pooling import pool, pool_groups
from .proof.prefix import PrefixLevel, SearchPlan
from .proof.rows import Part
from .proof.true_score import TrueRow, TrueRows
from .settings import GallerySettings

_log = logging.getLogger(__name__)
_FORMS = {"float32": 0, "float16": 1, "uint8": 2}  # of a fine copy, by how it is stored; search.h has the same numbers
_INTERFACE = 7  # of the core; core/module.cpp has the same number
_AT_ONCE = 64  # queries of one call to the core, which scans them together


@cache
def open_core() -> ModuleType | None:
    """The extension module; None where it was not built, or was built from other sources than these."""
    try:
        from . import _core
    except ImportError:
        return None
    if getattr(_core, "INTERFACE", None) != _INTERFACE:
        _log.warning("the compiled search is of another version, so a slower one is used; install this package again")
        return None
    return _core


def need_core() -> ModuleType:
    """The extension module; BackendError where it was not built."""
    core = open_core()
    if core is None:
        raise BackendError(
            "the compiled search was not built when this package was installed, or is of another version: install a "
            "C++17 compiler (Debian: apt install g++), then install this package again"
        )
    return core


def core_is_fastest() -> bool:
    """Whether the core is the fastest scan here: not where plain C++ is all that this CPU can run.

    The top 10 of 1,000 images (36 x 1024) took 318 ms in plain C++, 88 with numpy, 47 with onnxruntime and 15 with AVX2
    (the best of 30 searches on 2 cores of a Zen 4 that other work shared).
    """
    core = open_core()
    return core is not None and core.features()[0] != "generic"


def core_searches(settings: GallerySettings) -> bool:
    """Whether the core can search galleries like this: those with a fine copy, by any coding but VSA."""
    return settings.fine != "none" and settings.alignment.coding != "VSA"


class CoreThreads:
    """Threads of the core that the searches of one gallery share; they start when they are first needed.

    Args:
        count: how many a call may use, the caller's included; by default as many as this process may use CPUs.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = count or usable_cpus()
        self._threads: Any = None
        now_and_after_fork(self._prepare)

    def _prepare(self) -> None:
        self._lock = threading.Lock()
        if self._threads is not None:  # which a forked process does not have
            self._threads.forget()
            self._threads = None

    def started(self) -> Any:
        """The core's object."""
        with self._lock:
            if self._threads is None and (core := open_core()) is not None:
                self._threads = core.Threads(self.count)
            return self._threads

    def close(self) -> None:
        """End the threads once the searches that run have ended."""
        self._threads = None


class CompiledSearch:
    """Ranks the rows of a gallery with fine copies, by any coding but VSA; any number of threads may use one.

    Args:
        gallery: the rows.
        plan: how they were coded; None where search was not prepared.
        threads: what calls use.
        instructions: name of an instruction set (`_core.features()`); None for the fastest one of this CPU.

    Raises:
        BackendError: the core was not built, or this CPU has no such instructions.
    """

    def __init__(
        self, gallery: GalleryRows, plan: SearchPlan | None, threads: CoreThreads, instructions: str | None = None
    ) -> None:
        core = need_core()
        if instructions is not None and instructions not in core.features():
            known = ", ".join(core.features())
            raise BackendError(f"this CPU has no instructions named {instructions}; it has {known}")
        self._gallery, self._plan, self._threads = gallery, plan, threads
        self._instructions = instructions or _fastest(core.features(), plan)
        self._core = core
        self._search: Any = None
        now_and_after_fork(self._make_lock)

    def _make_lock(self) -> None:
        self._lock = threading.Lock()

    def _opened(self) -> Any:
        """The core's object; made at the first search, which reads and checks what every search reads."""
        with self._lock:
            if self._search is None:
                parts = [_part(part, self._plan) for part in self._gallery.parts]
                plan = _plan(self._gallery, self._plan, self._instructions)
                self._search = self._core.Search(plan, parts, partial(_check, self._gallery.parts))
            return self._search

    def rank(
        self,
        queries: Sequence[NDArray[np.float32]],
        k: int,
        allowed: NDArray[np.bool_] | None = None,
        floors: NDArray[np.float64] | None = None,
    ) -> list[Ranking]:
        """The certified top k of each query's vectors [Q_i, D] among the rows where `allowed` [N] is True.

        floors: float64 [queries], the least score of a row that is wanted for each query.

        Raises:
            GalleryCorrupt: bytes that had to be read are not those that were committed, or contradict each other.
        """
        if len(queries) > _AT_ONCE:  # so that Ctrl-C is noticed between them
            pieces = [slice(first, first + _AT_ONCE) for first in range(0, len(queries), _AT_ONCE)]
            return [
                ranking
                for piece in pieces
                for ranking in self.rank(queries[piece], k, allowed, None if floors is None else floors[piece])
            ]
        vectors, starts = _packed(queries)
        mask = None if allowed is None or allowed.all() else np.ascontiguousarray(allowed)
        least = np.full(len(queries), -np.inf) if floors is None else np.ascontiguousarray(floors, np.float64)
        answers = self._opened().best(
            vectors, starts, min(k, self._gallery.count), mask, least, self._threads.started()
        )
        candidates = self._gallery.count if mask is None else int(np.count_nonzero(mask))
        return [
            self._ranking(answer, k, candidates).reaching(floor)
            for answer, floor in zip(answers, least.tolist(), strict=True)
        ]

    def rank_listed(
        self,
        queries: Sequence[NDArray[np.float32]],
        k: int,
        listed: Sequence[NDArray[np.int64]],
        floors: NDArray[np.float64],
    ) -> list[Ranking]:
        """The certified top k of each query's vectors [Q_i, D] among rows of its own.

        Args:
            queries: of n queries.
            k: how many rows are wanted.
            listed: of each query the rows to choose among, in ascending order.
            floors: float64 [n], as of `rank`.

        Raises:
            GalleryCorrupt: as of `rank`.
        """
        vectors, starts = _packed(queries)
        edges = np.cumsum([0] + [len(rows) for rows in listed], dtype=np.int64)
        rows = np.ascontiguousarray(np.concatenate(listed), np.int64)
        least = np.ascontiguousarray(floors, np.float64)
        answers = self._opened().best_listed(vectors, starts, k, rows, edges, least, self._threads.started())
        return [
            self._ranking(answer, k, len(own)).reaching(floor)
            for answer, own, floor in zip(answers, listed, least.tolist(), strict=True)
        ]

    def above(
        self,
        queries: Sequence[NDArray[np.float32]],
        query_thresholds: NDArray[np.float64],
        row_thresholds: NDArray[np.float64],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Every row whose score with a query's vectors [Q_i, D] reaches the query's threshold or the row's own.

        Args:
            queries: of n queries.
            query_thresholds: float64 [n].
            row_thresholds: float64 [N].

        Returns:
            counts [n], how many rows each query found; then of all queries, one after another, the rows in ascending
            order and their scores [counts.sum()]. A score is exact where it equals one of its two thresholds; otherwise
            it may be any number on the same side of both as the score.

        Raises:
            GalleryCorrupt: bytes that had to be read are not those that were committed.
        """
        limits = (np.ascontiguousarray(thresholds, np.float64) for thresholds in (query_thresholds, row_thresholds))
        found = self._opened().above(*_packed(queries), *limits, self._threads.started())
        counts, rows, scores = found
        return np.frombuffer(counts, np.int64), np.frombuffer(rows, np.int64), np.frombuffer(scores, np.float64)

    def scores(self, queries: Sequence[NDArray[np.float32]], rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """The true score, float64 [n], of each query's vectors [Q_i, D] with the one row that `rows` [n] gives it.

        Raises:
            GalleryCorrupt: bytes that had to be read are not those that were committed.
        """
        vectors, starts = _packed(queries)
        wanted = np.ascontiguousarray(rows, np.int64)
        return np.frombuffer(self._opened().scores(vectors, starts, wanted, self._threads.started()), np.float64)

    def _ranking(self, answer: tuple[Any, ...], k: int, candidates: int) -> Ranking:
        *buffers, second, codes, rescored, contradicting = answer
        if contradicting >= 0:
            raise contradiction(contradicting)
        types = (np.int64, np.int64, np.float64, np.int32)
        rows, counts, maxima, winners = (np.frombuffer(b, t) for b, t in zip(buffers, types, strict=True))
        ends = counts.cumsum()
        if self._gallery.pools_query and len(rows):  # as many values for each row as the query has vectors
            maxima, winners = (each.reshape(len(rows), -1) for each in (maxima, winners))
            scores = pool(maxima, self._gallery.alignment)
            order = np.lexsort((rows, -scores))[:k]
            every = TrueRows(scores[order], maxima[order], winners[order])
            return Ranking(rows[order], every.scores, every, candidates, rescored, True, second, codes)
        scores = np.zeros(0)
        if len(rows):
            scores = pool_groups(maxima[:, None], np.r_[0, ends], self._gallery.alignment)[0][:, 0]
        order = np.lexsort((rows, -scores))[:k]
        spans = [slice(int(ends[i] - counts[i]), int(ends[i])) for i in order.tolist()]
        best = scores[order]
        details = tuple(
            TrueRow(score, maxima[span], winners[span]) for score, span in zip(best.tolist(), spans, strict=True)
        )
        return Ranking(rows[order], best, details, candidates, rescored, True, second, codes)


def _fastest(features: Sequence[str], plan: SearchPlan | None) -> str:
    """The first, or AMX where all int8 codes are scanned: that took 4.9 ms in place of 7.0 (docs/search-speed.md)."""
    scans_all = plan is None or plan.first is None
    return "amx" if scans_all and "amx" in features else features[0]


def _check(parts: Sequence[Part], part: int, row: int, what: int) -> None:
    """What the core calls; not a method, as the core's object would then keep alive what keeps it alive."""
    parts[part].check(row, what)


def _packed(queries: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The vectors of all queries [Q, D], and where each query's begin [n + 1]."""
    for i, query in enumerate(queries):
        if not len(query):
            raise InputError(f"queries[{i}] must hold at least one vector, got none")
    starts = np.cumsum([0] + [len(query) for query in queries], dtype=np.int64)
    vectors = queries[0] if len(queries) == 1 else np.concatenate(queries)
    return np.ascontiguousarray(vectors, np.float32), starts


def _plan(gallery: GalleryRows, plan: SearchPlan | None, instructions: str | None) -> dict[str, Any]:
    """What core/module.cpp reads of a plan."""
    found: dict[str, Any] = {
        "instructions": instructions,
        "dim": gallery.parts[0].arrays().fine.shape[1] if gallery.parts else 1,
        "pools_query": gallery.pools_query,
        "pooling": gallery.alignment.pooling,
        "temperature": gallery.alignment.pooling_temperature,
        "digits": 2 if plan is None else plan.digits,
        "deviation": 0.0 if plan is None else plan.axes.deviation,
        "axes": 0 if plan is None else plan.axes.count,
        "edges": [] if plan is None else block_edges(plan.axes.leading.shape[1]),
        "mean": None if plan is None else plan.axes.mean,
        "basis": None if plan is None else plan.axes.basis,
    }
    found |= _level("first", None if plan is None else plan.first)
    return found | _level("second", None if plan is None else plan.second)


def _level(name: str, level: PrefixLevel | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"norms": 0, "coordinates": 0, "again": 0, "edges": []}
    facts |= dict.fromkeys(("steps", "norm_step", "norm_typical"))
    if level is not None:
        facts = {key: getattr(level, key) for key in facts} | {"edges": level.edges.tolist()}
    return {f"{name}_{key}": value for key, value in facts.items()}


def _part(part: Part, plan: SearchPlan | None) -> dict[str, Any]:
    """What core/module.cpp reads of a part; one that was not coded by this plan is scanned at int8."""
    arrays = part.arrays()
    coded = plan is not None and part.plan is not None and part.plan.axes is plan.axes
    levels = coded and plan is not None and plan.first is not None and arrays.first is not None
    return {
        "rows": len(part.starts) - 1,
        "starts": part.starts,
        "stride": arrays.codes.shape[1],
        "form": _FORMS[arrays.fine.dtype.name],
        "codes": arrays.codes,
        "scale": np.ascontiguousarray(part.scale),
        "error": np.ascontiguousarray(part.error),
        "norm": np.ascontiguousarray(part.norm),
        "fine": arrays.fine,
        "checked": arrays.checked,
        "measures": arrays.measures if coded else None,
        "first": arrays.first if levels else None,
        "order": arrays.order if levels else None,
        "second": arrays.second if levels else None,
        "loose": arrays.loose if levels else None,
    }
