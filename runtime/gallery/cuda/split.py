"""A gallery on several GPUs: each holds some of its parts, and lists those of its own rows that could be the best."""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError
from ...forks import now_and_after_fork
from ..kernels.pool import Pool
from ..proof.pooling import Float64Array
from ..proof.rows import Part
from .decide import Decided, join
from .resident import Decide, Listed, Queries, ResidentScan


@dataclass(eq=False)
class _Share:
    """A part, the number of the GPU that holds it, and what that GPU's scan knows it by."""

    part: Part
    place: int
    held: Any

    @property
    def vectors(self) -> int:
        """How many vectors it has."""
        return int(self.part.starts[-1])


@dataclass(frozen=True, eq=False)
class _Local:
    """The rows on one GPU, and their numbers [n] among all rows, ascending."""

    rows: Any
    numbers: NDArray[np.int64]


class SplitScan:
    """A `ResidentScan` over several GPUs, which scan at the same time.

    A part goes whole to the GPU that holds the fewest vectors then, and stays there. Each GPU lists by a threshold of
    its own rows, which the k-th best of all rows is no less than, so the lists together hold every row of the top k.

    Args:
        scans: of one gallery, each on a GPU of its own; closed with this one.
    """

    def __init__(self, scans: Sequence[ResidentScan]) -> None:
        self.name = f"{scans[0].name} on {len(scans)} GPUs"
        self.certified = all(scan.certified for scan in scans)
        self._scans = scans
        self._pool = Pool(len(scans))
        self._closed = False
        now_and_after_fork(self._make_lock)
        self._known: weakref.WeakValueDictionary[int, _Share] = weakref.WeakValueDictionary()

    def _make_lock(self) -> None:
        self._turn = threading.Lock()

    def require(self, parts: Sequence[Part]) -> None:
        """See `ResidentScan.require`: each GPU is asked about the parts that will go to it."""
        with self._turn:
            loads = self._loads()
            shares: list[list[Part]] = [[] for _ in self._scans]
            for part in parts:
                if id(part) not in self._known:
                    place = loads.index(min(loads))
                    shares[place].append(part)
                    loads[place] += int(part.starts[-1])
        for scan, own in zip(self._scans, shares, strict=True):
            scan.require(own)

    def _loads(self) -> list[int]:
        """How many vectors each GPU holds."""
        loads = [0] * len(self._scans)
        for each in self._known.values():
            loads[each.place] += each.vectors
        return loads

    def hold(self, part: Part) -> _Share:
        """See `ResidentScan.hold`."""
        with self._turn:
            share = self._known.get(id(part))
            if share is None:
                loads = self._loads()
                place = loads.index(min(loads))
                share = _Share(part, place, self._scans[place].hold(part))
                self._known[id(part)] = share  # the part lives as long as its share, so its id is its own
            return share

    def gather(self, held: Sequence[_Share]) -> list[_Local]:
        """See `ResidentScan.gather`."""
        counts = [len(share.part.starts) - 1 for share in held]
        places = np.repeat([share.place for share in held], counts)
        return [
            _Local(scan.gather([share.held for share in held if share.place == place]), np.flatnonzero(places == place))
            for place, scan in enumerate(self._scans)
        ]

    def shortlist(
        self,
        rows: Sequence[_Local],
        queries: Queries,
        k: int,
        allowed: NDArray[np.bool_],
        floors: Float64Array,
    ) -> list[Listed]:
        """See `ResidentScan.shortlist`."""

        if self._closed:
            raise BackendError("the gallery was closed")

        def listed(place: int) -> list[Listed]:
            local = rows[place]
            if not len(local.numbers):
                return [Listed(local.numbers, np.zeros(0), np.zeros(0), -np.inf) for _ in queries]
            found = self._scans[place].shortlist(local.rows, queries, k, allowed[local.numbers], floors)
            return [each._replace(rows=local.numbers[each.rows]) for each in found]

        return [_joined(lists) for lists in zip(*self._pool.map(listed, len(self._scans)), strict=True)]

    def decider(self, rows: Sequence[_Local]) -> Decide | None:
        """See `ResidentScan.decider`; None unless each GPU has one for its own rows."""
        deciders: list[tuple[Decide, NDArray[np.int64]]] = []
        for scan, local in zip(self._scans, rows, strict=True):
            if len(local.numbers):
                own = scan.decider(local.rows)
                if own is None:
                    return None
                deciders.append((own, local.numbers))
        return partial(self._decide, deciders)

    def _decide(
        self,
        deciders: Sequence[tuple[Decide, NDArray[np.int64]]],
        queries: Queries,
        k: int,
        allowed: NDArray[np.bool_],
        floors: Float64Array,
        turn: int,
        use: Callable[[Decided], None],
    ) -> None:
        """See `Decide`: what the GPUs decided about the same queries is used once the last of them has."""
        if self._closed:
            raise BackendError("the gallery was closed")
        waiting: defaultdict[int, list[Decided]] = defaultdict(list)  # by the first query's number
        one_at_a_time = threading.Lock()

        def decide_on(index: int) -> None:
            decide, numbers = deciders[index]

            def take(decided: Decided) -> None:
                with one_at_a_time:
                    every = waiting[int(decided.numbers[0])]
                    every.append(replace(decided, rows=numbers[decided.rows]))
                    if len(every) == len(deciders):
                        use(replace(join(every), found=np.sum([each.found for each in every], axis=0)))
                        every.clear()

            decide(queries, k, allowed[numbers], floors, turn, take)

        self._pool.map(decide_on, len(deciders))

    def close(self) -> None:
        """See `ResidentScan.close`."""
        self._closed = True
        with ExitStack() as closing:
            closing.callback(self._pool.close)
            for scan in self._scans:
                closing.callback(scan.close)


def _joined(lists: Sequence[Listed]) -> Listed:
    """Lists of different rows as one, its rows in order, and the largest threshold."""
    rows = np.concatenate([each.rows for each in lists])
    scores, radii = (np.concatenate([getattr(each, name) for each in lists]) for name in ("scores", "radii"))
    order = np.argsort(rows)
    return Listed(rows[order], scores[order], radii[order], max(each.threshold for each in lists))
