"""The last step on a GPU: the listed rows' similarities by the fine copy, in float64 and in the order of true_score.py.

They are the CPU's to the bit. So nothing has to be bounded, and the CPU only pools the maxima and sorts (best.py). Of
many queries' long lists the GPU pools, too, and leaves out what its scores say cannot be among the best k. The GPU
holds the fine copy for this (fine.py). Where it does not fit, the compiled search ranks the lists by the fine copy in
host memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...contract import AlignmentConfig
from ..proof.pooling import Float64Array
from .fine import Fine
from .kernels import DECIDE_WORDS, PICKS
from .lists import DeviceLists
from .memory import Arena
from .queries import SentQueries

_AHEAD = 1024  # pairs that are decided before the CPU knows how long the lists are,
_AHEAD_BYTES = 256 << 10  # as far as their results take no more
_MOST_AHEAD = 256  # places of each list that are decided so, where the last lists were as long
_LONGEST = 4096  # vectors of a query up to which they are
_SPARE = 4  # pairs of each query beyond k that are copied to the CPU where the GPU selects the best ones
RESULTS = 64 << 20  # bytes of results on the GPU at once; more pairs are decided in turns
PAIR_BYTES = 12  # of results, for each of a query's vectors

_OF_PAIRS = ("queries", "rows", "maxima", "winners")
_Rows = tuple[NDArray[np.int32], Float64Array, NDArray[np.int32]]  # rows, maxima, winners


class Codes(NamedTuple):
    """What lies beside the fine copies on the device, by address, and the numbers of rows and of plans.

    `decide` has arguments of these names.
    """

    codes: int
    places: int
    row_scale: int
    lengths: int
    error: int
    norm: int
    blocks: int
    plans: int
    rows: int
    num_plans: int


@dataclass(frozen=True)
class Decided:
    """What a GPU decided of some queries' listed rows, the best k among them: P pairs of a query and a row, unordered.

    Attributes:
        numbers: int64 [n], the queries, by number.
        found: int64 [n], how many rows were listed for each.
        queries: int64 [P], of each pair the place of its query in `numbers`.
        rows: int64 [P].
        maxima: float64 [P, S], of each of the query's vectors the largest similarity over the row's vectors; what
            stands beyond the query's last vector means nothing.
        winners: int32 [P, S], the first of the row's vectors that reaches it.
    """

    numbers: NDArray[np.int64]
    found: NDArray[np.int64]
    queries: NDArray[np.int64]
    rows: NDArray[np.int64]
    maxima: Float64Array
    winners: NDArray[np.int32]

    def choose(self, pairs: NDArray[Any]) -> Decided:
        """Some of the pairs, by place or by mask."""
        return replace(self, **{name: getattr(self, name)[pairs] for name in _OF_PAIRS})


def join(several: Sequence[Decided]) -> Decided:
    """Other pairs of the same queries as one."""
    if len(several) == 1:
        return several[0]
    arrays = {name: np.concatenate([getattr(each, name) for each in several]) for name in _OF_PAIRS}
    return replace(several[0], **arrays)


class Decider:
    """Queues the kernels that read fine copies. Callers take turns.

    Args:
        arena: what results lie in.
        launch: queues a kernel, given its name, the blocks, the addresses and the numbers.
        alignment: how similarities become scores.
    """

    def __init__(self, arena: Arena, launch: Callable[..., None], alignment: AlignmentConfig) -> None:
        self._arena, self._launch, self._alignment = arena, launch, alignment
        # A score can be off by what a similarity can, or by that over the temperature: `terms` of query_kernels.py.
        slope = 1 / alignment.pooling_temperature if alignment.pooling == "LSE" else 1.0
        self._share = 2 / slope * (1 + 1e-8)
        self._listed = 0  # rows on the longest list of the last queries

    def decide(
        self, fine: Fine, codes: Codes, lists: DeviceLists, sent: SentQueries, k: int, longest: int
    ) -> Callable[[], Decided]:
        """Queue the similarities of the first rows on lists; a function that computes the rest, once these are done.

        It returns none of a list that does not hold all of its rows. Nothing else may be queued before it returned.

        Args:
            fine: of all rows.
            codes: beside it.
            lists: of the queries; queued, not waited for.
            sent: the first `lists.queries` of them are those of the lists.
            k: how many of each list's rows are wanted: those of the largest scores.
            longest: no less than any Q_i; so many similarities each pair has room for (S).
        """
        arena, count, capacity = self._arena, lists.queries, lists.capacity
        fetched = arena.fetch("found", lists.found, count, np.int32)
        ahead, room = self._ahead(lists, longest), k + _SPARE
        begins = np.arange(count) * capacity  # of each list, among all places
        chosen = (begins[:, None] + np.arange(ahead)).reshape(-1)
        kept: NDArray[np.int32] | None = None
        if 2 * room <= ahead <= PICKS[-1]:
            places = arena.send("chosen", chosen.astype(np.int32))
            decided = self._queue(fine, codes, lists, sent, places, len(chosen), longest)
            kept, first = self._select(lists, sent, decided, k, ahead, room, longest)
        else:
            room, first = ahead, self._fetch(fine, codes, lists, sent, chosen, longest)

        def finish() -> Decided:
            found = fetched.astype(np.int64)
            held = np.where(found <= capacity, found, 0)
            self._listed = int(held.max())
            done = filled = np.minimum(held, ahead)  # how many places of each list are decided, and lie in `first`
            if kept is not None:
                fits = (kept <= room) & (held > 0)
                done, filled = done * fits, kept * fits
            which, place = np.nonzero(np.arange(room) < filled[:, None])
            results: list[tuple[NDArray[Any], ...]] = [(which, *(array[which * room + place] for array in first))]
            left = _ranges(begins + done, held - done)
            most = max(1, RESULTS // (PAIR_BYTES * longest))
            for begin in range(0, len(left), most):
                chosen = left[begin : begin + most]
                more = self._fetch(fine, codes, lists, sent, chosen, longest)
                arena.wait()
                results.append((chosen // capacity, *(array.copy() for array in more)))  # until the next fetch
            columns = results[0] if len(results) == 1 else [np.concatenate(each) for each in zip(*results, strict=True)]
            which, rows, maxima, winners = columns
            return Decided(np.arange(count), found, which, rows.astype(np.int64), maxima, winners)

        return finish

    def _ahead(self, lists: DeviceLists, longest: int) -> int:
        """How many places of each list are decided before the CPU knows how long the lists are."""
        if longest > _LONGEST:
            return 0
        size = PAIR_BYTES * longest * lists.queries
        usual = min(self._listed + self._listed // 4, _MOST_AHEAD, RESULTS // size)  # the next list may be longer
        return min(lists.capacity, max(min(_AHEAD // lists.queries, _AHEAD_BYTES // size), usual))

    def similarities(self, fine: Fine, codes: Codes, lists: DeviceLists, sent: SentQueries, longest: int) -> int:
        """Queue the similarities of all places of the lists; the arguments are as of `decide`.

        Returns the address of their maxima, float64 [queries, capacity, S].
        """
        places = lists.queries * lists.capacity
        chosen = self._arena.send("numbers", np.arange(places, dtype=np.int32))
        return self._queue(fine, codes, lists, sent, chosen, places, longest)

    def _queue(
        self,
        fine: Fine,
        codes: Codes,
        lists: DeviceLists,
        sent: SentQueries,
        chosen: int,
        pairs: int,
        longest: int,
    ) -> int:
        """Queue `decide` of the lists' places at an address, int32 [pairs]; the address of maxima, winners and rows."""
        tiles = -(-longest // DECIDE_WORDS)
        maxima, winners, rows = _columns(self._arena.scratch("decided", _size(pairs, longest)), pairs, longest)
        *held, count, num_plans = codes
        queries = sent.exact, sent.starts, sent.query, sent.query_starts, sent.word_scale
        listed = lists.terms, lists.found, lists.rows, chosen
        addresses = (fine.base, fine.places, *held, *listed, *queries, rows, maxima, winners)
        numbers = lists.capacity, longest, tiles, count, num_plans, sent.query_places, self._share
        self._launch(f"decide_{fine.form}", pairs * tiles, addresses, *numbers)
        return maxima

    def _fetch(
        self,
        fine: Fine,
        codes: Codes,
        lists: DeviceLists,
        sent: SentQueries,
        chosen: NDArray[np.int64],
        longest: int,
    ) -> _Rows:
        """Queue the decision of some places of the lists: rows, maxima and winners, as of `Arena.fetch`.

        What lies beyond a list's end is left as it was.
        """
        pairs = len(chosen)
        if not pairs:
            return np.zeros(0, np.int32), np.zeros((0, longest)), np.zeros((0, longest), np.int32)
        places = self._arena.send("chosen", chosen.astype(np.int32))
        address = self._queue(fine, codes, lists, sent, places, pairs, longest)
        return _parted(self._arena.fetch("decided", address, _size(pairs, longest), np.uint8), pairs, longest)

    def _select(
        self, lists: DeviceLists, sent: SentQueries, decided: int, k: int, picks: int, room: int, longest: int
    ) -> tuple[NDArray[np.int32], _Rows]:
        """Queue the choice among the first rows of lists, which `_queue` decided at an address.

        Returns how many of each list are left, int32 [queries], and these as of `_fetch`: [queries * room]. Where more
        are left than there is room for, some are missing.
        """
        count = lists.queries
        pairs = count * room
        size = _size(pairs, longest)
        target = self._arena.scratch("kept", size + 4 * count)
        sources, targets = _columns(decided, count * picks, longest), _columns(target, pairs, longest)
        addresses = (*sources, lists.found, sent.starts, sent.margins, lists.thresholds, *targets, target + size)
        name = next(f"select_{most}" for most in PICKS if most >= picks)
        temperature = float(self._alignment.pooling_temperature)
        self._launch(name, count, addresses, k, picks, room, longest, temperature)
        data = self._arena.fetch("kept", target, size + 4 * count, np.uint8)
        return data[size:].view(np.int32), _parted(data[:size], pairs, longest)


def _columns(address: int, pairs: int, longest: int) -> tuple[int, int, int]:
    """Where maxima, winners and rows of the results of so many pairs lie."""
    return address, address + 8 * pairs * longest, address + 12 * pairs * longest


def _parted(data: NDArray[np.uint8], pairs: int, longest: int) -> _Rows:
    """The rows, maxima and winners in the results of so many pairs."""
    maxima, rest = data[: 8 * pairs * longest].view(np.float64), data[8 * pairs * longest :].view(np.int32)
    return rest[pairs * longest :], maxima.reshape(pairs, longest), rest[: pairs * longest].reshape(pairs, longest)


def _ranges(begins: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers from each begin on, as many as its count, one range after another."""
    before = np.cumsum(counts) - counts
    return np.repeat(begins - before, counts) + np.arange(counts.sum())


def _size(pairs: int, longest: int) -> int:
    """Bytes of the results of so many pairs."""
    return pairs * (PAIR_BYTES * longest + 4)
