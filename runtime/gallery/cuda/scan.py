"""The scan of a gallery in a GPU's memory: which rows could be among the best k for a query.

The GPU computes rows' scores from int8 codes, in the numbers of bounds.py, and how far the true scores can be from
them, by the narrow bound (1'), whose numbers lie beside the codes (held.py). k rows reach the k-th largest lower bound,
so that is the threshold: every row whose upper bound reaches it is listed. Where the fine copy is on the GPU as well,
the true scores of a few rows raise the threshold, and those of the listed rows are decided (decide.py). Elsewhere the
CPU ranks the lists (search.py, estimate.py). In a large gallery the first level of its plan leaves out most rows before
any of this (levels.py). All of it is queued at once, and the CPU waits once.

The k-th largest is taken of the largest lower bounds of groups of rows, at most MOST_GROUPS of them: of one row each in
a small gallery. Where two of the best k share a group the threshold is a little lower, and the list a little longer.

float16 holds a half-precision copy instead: twice the bytes, nothing proven, nothing to certify.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...backends.device import Device
from ...contract import AlignmentConfig
from ..proof.bounds import MOST_BLOCKS
from ..proof.pooling import Float64Array
from ..proof.prefix import AXES
from ..proof.rows import Part
from .decide import PAIR_BYTES, RESULTS, Codes, Decided, Decider, Fine, join
from .held import HeldPart, HeldRows, RowHolder
from .kernels import (
    BOUND_ROWS,
    GROUPS,
    LIST_ROWS,
    MOST_GROUPS,
    PAIR_ROWS,
    PICKS,
    PROJECT_AXES,
    PROJECT_WORDS,
    SCAN_ROWS,
    SLOTS,
    WORD_TILES,
    WORDS_A_TILE,
    KernelRecord,
    level_stride,
)
from .levels import FEW, SHARE, Levels, serves
from .lists import DeviceLists
from .memory import Arena
from .queries import QuerySender, SentQueries
from .resident import Decide, Listed, Queries
from .turns import Turns

BEYOND = 22  # rows beyond k whose true scores give the threshold, where the GPU holds the fine copy
CAPACITY = 4096  # rows a query's list holds; where more qualify, it is made again with room for all
_QUERIES = 512  # queries of one launch: their vectors and lists stay within some tens of MiB


T = TypeVar("T")
Truth = Callable[[DeviceLists, SentQueries, int, int, int], None]  # lists, their queries, k, see `_queue_lists`


class KernelScan:
    """A `ResidentScan` by the compiled kernels of kernels.py.

    Device memory: the codes (or the half copy) and 48 bytes a row, for as long as they are held; for a call 8 bytes for
    each pair of row and query (the ranker's turns keep them below 128 MiB), 80 KiB of lists a query, and the queries.

    Attributes:
        left: int32 [queries], how many rows the first level left in the last launch; None where it was not read.

    Raises:
        BackendError: CUDA does not take a kernel.
    """

    def __init__(
        self, record: KernelRecord, code: dict[str, bytes], device: Device, dim: int, alignment: AlignmentConfig
    ) -> None:
        self.name = f"triton {record.precision}"
        self.certified = record.precision == "int8"
        self.left: NDArray[np.int32] | None = None
        self._dim = dim
        self._width = record.width
        self._alignment = alignment
        self._record = record
        self._device = device
        device.activate()
        self._arena = Arena(device)
        self._stride = level_stride(record.width) or 0 if "bound_16" in record.functions else 0
        self._sender = QuerySender(self._arena, self._launch, self.certified, self._width, dim, alignment)
        self._holder = RowHolder(self._arena, record, self._sender, dim)
        self._decider = Decider(self._arena, self._launch, self._width, dim, alignment)
        self._turns = Turns(self._arena)
        self._kernels: dict[str, Any] = {}
        self._known: weakref.WeakValueDictionary[int, HeldPart] = weakref.WeakValueDictionary()
        try:
            for name, function in record.functions.items():
                self._kernels[name] = device.load_kernel(code[name], function.symbol, function.shared, function.hidden)
        except BaseException:
            self.close()
            raise

    @property
    def allocations(self) -> int:
        """How often device memory was allocated so far."""
        return self._arena.allocations

    def hold(self, part: Part) -> HeldPart:
        """See `ResidentScan.hold`.

        Raises:
            BackendError: the device has too little memory; the message gives how much is needed and what to do.
            TensorError: a value that float16 cannot hold.
        """
        with self._turns.lock:
            held = self._known.get(id(part))
            if held is None:
                self._device.activate()
                held = self._holder.upload(part)
                self._known[id(part)] = held  # the part lives as long as what holds it, so its id is its own
            return held

    def gather(self, held: Sequence[HeldPart]) -> HeldRows:
        """See `ResidentScan.gather`.

        Raises:
            GpuMemoryError: the device has too little memory.
        """
        with self._turns.lock:
            self._device.activate()
            return self._holder.gather(held)

    def shortlist(
        self, rows: HeldRows, queries: Queries, k: int, allowed: NDArray[np.bool_], floors: Float64Array
    ) -> list[Listed]:
        """See `ResidentScan.shortlist`."""
        found: dict[int, Listed] = {}
        self._in_pieces(
            rows,
            queries,
            k,
            allowed,
            floors,
            _QUERIES,
            lambda lists, _: partial(self._fetched, lists, rows),
            lambda piece, listed: found.update(zip(piece, listed, strict=True)),
        )
        return [found[i] for i in range(len(queries))]

    def decider(self, rows: HeldRows) -> Decide | None:
        """See `ResidentScan.decider`: None where the fine copies do not fit, and at float16, which proves nothing.

        Raises:
            GpuMemoryError: the device has too little memory after all.
            GalleryCorrupt: bytes of a fine copy are not those that were committed.
        """
        if not self.certified:
            return None
        with self._turns.lock:
            self._device.activate()
            fine = self._decider.hold([each.part for each in rows.held])
        return None if fine is None else partial(self._decide, rows, fine)

    def _decide(
        self,
        rows: HeldRows,
        fine: Fine,
        queries: Queries,
        k: int,
        allowed: NDArray[np.bool_],
        floors: Float64Array,
        turn: int,
        use: Callable[[Decided], None],
    ) -> None:
        """See `Decide`."""
        bounds = rows.error, rows.norm, rows.blocks, rows.plans
        held = Codes(rows.base, rows.places, rows.scale, rows.lengths, *bounds, rows.count, len(rows.coded.columns))

        def take(lists: DeviceLists, sent: SentQueries) -> Callable[[], Decided]:
            longest = max(sent.lengths)
            finish = self._decider.decide(fine, held, lists, sent, longest)

            def decided() -> Decided:
                several = [finish()]
                for which in np.flatnonzero(several[0].found > lists.capacity).tolist():
                    threshold = self._arena.fetch("threshold", lists.thresholds + 8 * which, 1, np.float64)
                    self._arena.wait()
                    long = self._list_again(lists, rows, which, threshold)
                    again = self._decider.decide(fine, held, long, sent.alone(which), longest)()
                    several.append(replace(again, queries=np.full_like(again.queries, which)))
                return join(several)

            return decided

        def numbered(piece: list[int], decided: Decided) -> None:
            use(replace(decided, numbers=np.array(piece)))

        truth = partial(self._raise_by_truth, fine, held)
        self._in_pieces(rows, queries, k, allowed, floors, turn, take, numbered, truth)

    def _in_pieces(
        self,
        rows: HeldRows,
        queries: Queries,
        k: int,
        allowed: NDArray[np.bool_],
        floors: Float64Array,
        turn: int,
        take: Callable[[DeviceLists, SentQueries], Callable[[], T]],
        use: Callable[[list[int], T], None],
        truth: Truth | None = None,
    ) -> None:
        """Queue the lists of some queries at a time, and use what comes of them while the GPU computes the next.

        Between two launches others have their turn.

        Args:
            rows, queries, k, allowed, floors: as of `shortlist`.
            turn: how many queries at most at a time.
            take: queues what needs their lists; what it returns waits for that, and is called before others queue.
            use: is given the queries' numbers, and what that returned.
            truth: as of `_queue_lists`.
        """
        k = max(1, min(k, rows.count))  # a number that a kernel takes
        last: tuple[list[int], T] | None = None
        for piece in _pieces(queries, turn):
            if last is not None and self._turns.awaited:  # others go first
                use(*last)
                last = None
            own = [queries[i] for i in piece]
            with self._turns.search():
                for levels in _levels_for(rows, own):
                    self._arena.begin()
                    sent = self._sender.send(own, _slot(own) if levels is None else None)
                    lists = self._queue_lists(rows, sent, k, allowed, floors[piece], levels, truth)
                    candidates = self._fetch_candidates(lists)
                    finish = take(lists, sent)
                    if last is not None:
                        use(*last)
                        last = None
                    taken = finish()
                    if self._fit(lists, candidates):
                        break
            last = piece, taken
        if last is not None:
            use(*last)

    def _raise_by_truth(
        self,
        fine: Fine,
        held: Codes,
        lists: DeviceLists,
        sent: SentQueries,
        k: int,
        picked: int,
        picks: int,
    ) -> None:
        """Queue that each query's threshold becomes the k-th largest true score of its picked rows, or stays.

        The GPU pools similarities in float64, as the CPU does, and (2) of bounds.py holds for both. So the GPU's score
        less twice as much is no more than the CPU's.
        """
        longest = max(sent.lengths)
        few = lists._replace(capacity=picks, found=lists.picked, rows=picked)
        maxima = self._decider.similarities(fine, held, few, sent, longest)
        addresses = maxima, lists.picked, sent.starts, sent.margins, lists.thresholds
        name = next(f"reach_{most}" for most in PICKS if most >= picks)
        temperature = float(self._alignment.pooling_temperature)
        self._launch(name, lists.queries, addresses, k, picks, longest, temperature)

    def close(self) -> None:
        """See `ResidentScan.close`."""
        with self._turns.lock:
            try:
                self._device.activate()
                while self._kernels:
                    self._device.unload_kernel(self._kernels.popitem()[1])
            finally:
                self._arena.close()

    def _queue_lists(
        self,
        rows: HeldRows,
        queries: SentQueries,
        k: int,
        allowed: NDArray[np.bool_],
        floors: Float64Array,
        levels: Levels | None,
        truth: Truth | None = None,
    ) -> DeviceLists:
        """Queue everything up to the lists.

        levels: the level that is read first, if one is.
        truth: raises thresholds by the true scores of picked rows, given the address of these and their number last.
        """
        count = len(queries.lengths)
        scores = self._arena.scratch("scores", 8 * count * rows.count)
        if levels is None:
            self._score(rows, queries, allowed, scores)
        else:
            upper = self._bound(rows, levels, queries, allowed, scores)
        start = floors if self.certified else np.full(count, -np.inf)
        lists = self._make_lists("lists", min(CAPACITY, rows.count), scores, start)
        if levels is not None:
            candidates = self._pick_candidates(rows, upper, lists, queries)
        lists = lists._replace(terms=self._sender.terms(queries, rows.coded, rows.largest))
        picks = 0 if truth is None else _picks(k, rows.count)
        if PAIR_BYTES * picks * count * max(queries.lengths) > RESULTS:  # a step that only saves time
            picks = 0
        picked = self._raise_thresholds(lists, rows, k, picks)
        if truth is not None and picks:
            truth(lists, queries, k, picked, picks)
        if levels is not None:
            self._fill(candidates, rows)
            self._score_listed(rows, candidates, queries, scores)
            if not picks:  # there are more lower bounds now
                self._raise_thresholds(lists, rows, k, 0)
            lists = lists._replace(candidates=candidates.found, room=candidates.capacity)
        self._fill(lists, rows)
        return lists

    def _bound(
        self,
        rows: HeldRows,
        levels: Levels,
        queries: SentQueries,
        allowed: NDArray[np.bool_],
        scores: int,
    ) -> int:
        """Queue every row's upper bound by the first level, and -inf as its score; the address of the bounds."""
        arena, lengths, count = self._arena, queries.lengths, len(queries.lengths)
        upper = arena.scratch("upper", 8 * count * rows.count)
        allowed_at = arena.send("allowed", allowed)
        pooled = arena.send("pooled", np.repeat(np.array(lengths, np.float64), lengths))
        words, temperature = sum(lengths), float(self._alignment.pooling_temperature)
        coordinates = arena.scratch("coordinates", 8 * words * AXES)
        digits = arena.scratch("digits", 2 * words * self._stride)
        scale, offset = arena.scratch("level_scale", 8 * words), arena.scratch("level_offset", 8 * words)
        columns, *weights = levels.weights.addresses
        blocks = -(-words // PROJECT_WORDS) * (AXES // PROJECT_AXES)
        self._launch("project", blocks, (queries.exact, columns, coordinates), words)
        addresses: tuple[int, ...] = (queries.exact, queries.norms, coordinates, *weights, pooled)
        numbers = *levels.weights.numbers, levels.largest, temperature
        self._launch("weigh", words, (*addresses, digits, scale, offset), words, *numbers)
        tile = _tile(lengths)
        blocks = -(-rows.count // BOUND_ROWS[WORD_TILES.index(tile)]) * count
        sent = allowed_at, digits, queries.starts, scale, offset
        addresses = levels.base, levels.places, rows.lengths, *sent, upper, scores
        self._launch(f"bound_{tile}", blocks, addresses, rows.count, words, count, temperature)
        return upper

    def _pick_candidates(self, rows: HeldRows, upper: int, lists: DeviceLists, queries: SentQueries) -> DeviceLists:
        """Queue the scores of the few rows of the best upper bounds; empty lists of the rows that reach a threshold.

        Their scores are upper bounds, and with terms of 0 these cannot be off.
        """
        count = lists.queries
        none = self._arena.send("no terms", np.zeros((count, len(rows.coded.columns), 6 + MOST_BLOCKS)))
        room = -(-rows.count // SHARE)
        candidates = self._make_lists("candidates", room, upper, np.full(count, -np.inf))
        candidates = candidates._replace(terms=none, thresholds=lists.thresholds)
        few = min(FEW, rows.count)
        picked = self._raise_thresholds(candidates, rows, 0, few)
        of_picked = candidates._replace(capacity=few, found=candidates.picked, rows=picked)
        self._score_listed(rows, of_picked, queries, lists.scores)
        return candidates

    def _score_listed(self, rows: HeldRows, lists: DeviceLists, queries: SentQueries, scores: int) -> None:
        """Queue the scores of the lists' rows."""
        listed = lists.found, lists.rows
        sent = queries.query, queries.starts, queries.word_scale
        addresses = rows.base, rows.places, rows.lengths, rows.scale, *listed, *sent, scores
        blocks = -(-lists.capacity // SCAN_ROWS) * lists.queries
        temperature = float(self._alignment.pooling_temperature)
        numbers = rows.count, queries.query_places, lists.queries, lists.capacity
        self._launch(f"scan_listed_{_tile(queries.lengths)}", blocks, addresses, *numbers, temperature)

    def _fetch_candidates(self, lists: DeviceLists) -> NDArray[np.int32]:
        """Queue how many candidates there are: [queries]."""
        if not lists.candidates:
            return np.zeros(lists.queries, np.int32)
        return self._arena.fetch("candidates", lists.candidates, lists.queries, np.int32)

    def _fit(self, lists: DeviceLists, candidates: NDArray[np.int32]) -> bool:
        """Whether there was room for all candidates, which were fetched."""
        self.left = candidates.copy() if lists.candidates else None
        return bool((candidates <= lists.room).all())

    def _make_lists(self, name: str, capacity: int, scores: int, thresholds: Float64Array) -> DeviceLists:
        """Empty lists: radii, scores and rows; apart from these thresholds, how many rows are found and picked."""
        count = len(thresholds)
        places = count * capacity
        radii = self._arena.scratch(name, 20 * places)
        head = self._arena.send(f"{name} head", np.concatenate([thresholds, np.zeros(count)]))
        found = head + 8 * count
        scores_at, rows_at = radii + 8 * places, radii + 16 * places
        return DeviceLists(count, capacity, scores, head, found, rows_at, scores_at, radii, found + 4 * count, 0)

    def _raise_thresholds(self, lists: DeviceLists, rows: HeldRows, k: int, picks: int) -> int:
        """Queue that each query's threshold becomes the k-th largest lower bound of groups' best rows, or stays.

        For k = 0 it stays. Returns the address of the rows that are picked, int32 [queries, picks]: those of the
        largest lower bounds, each of another group.
        """
        arena, count = self._arena, lists.queries
        size = max(1, -(-rows.count // MOST_GROUPS))
        groups = -(-rows.count // size)
        maxima = arena.scratch("maxima", 8 * count * groups)
        owners = arena.scratch("owners", 4 * count * groups)
        picked = arena.scratch("picked", 4 * count * max(1, picks))
        blocks = -(-groups // GROUPS) * count
        addresses = *_bounds(lists, rows), maxima, owners
        self._launch("best_rows", blocks, addresses, rows.count, size, groups, count, len(rows.coded.columns))
        addresses = maxima, owners, lists.thresholds, lists.picked, picked
        self._launch("kth_best", blocks, addresses, groups, k, picks, count)
        return picked

    def _fill(self, lists: DeviceLists, rows: HeldRows) -> None:
        """Queue that lists take the rows whose upper bound reaches the threshold."""
        addresses = *_bounds(lists, rows), lists.thresholds, lists.found, lists.rows, lists.values, lists.radii
        blocks = -(-rows.count // LIST_ROWS) * lists.queries
        self._launch("shortlist", blocks, addresses, rows.count, lists.capacity, lists.queries, len(rows.coded.columns))

    def _fetched(self, lists: DeviceLists, rows: HeldRows, name: str = "lists") -> list[Listed]:
        """The lists, once everything that was queued is done; those that overflowed are made again."""
        count, capacity = lists.queries, lists.capacity
        head = self._arena.fetch(f"{name} head", lists.thresholds, 12 * count, np.uint8)
        data = self._arena.fetch(name, lists.radii, 20 * count * capacity, np.uint8)
        self._arena.wait()
        thresholds, counts = head[: 8 * count].view(np.float64), head[8 * count :].view(np.int32).tolist()
        radii, scores = data[: 16 * count * capacity].view(np.float64).reshape(2, count, capacity)
        listed = data[16 * count * capacity :].view(np.int32).reshape(count, capacity)
        found = []
        for which, size in enumerate(counts):
            if size > capacity:
                long = self._list_again(lists, rows, which, thresholds[which : which + 1])
                found += self._fetched(long, rows, "long list")
                continue
            order = np.argsort(listed[which, :size])
            own = listed[which, order].astype(np.int64)
            found.append(Listed(own, scores[which, order], radii[which, order], float(thresholds[which])))
        return found

    def _list_again(self, lists: DeviceLists, rows: HeldRows, which: int, threshold: Float64Array) -> DeviceLists:
        """Queue the list of one query, with room for every row."""
        long = self._make_lists("long list", rows.count, lists.scores + 8 * which * rows.count, threshold)
        terms = lists.terms + 8 * which * len(rows.coded.columns) * (6 + MOST_BLOCKS)
        long = long._replace(terms=terms)
        self._fill(long, rows)
        return long

    def _score(self, rows: HeldRows, queries: SentQueries, allowed: NDArray[np.bool_], scores: int) -> None:
        """Queue the scan of every row: of many queries as one product, of few one by one."""
        arena, count = self._arena, len(queries.lengths)
        places = rows.base, rows.places, rows.lengths, rows.scale, arena.send("allowed", allowed)
        temperature = float(self._alignment.pooling_temperature)
        if queries.slot is not None:
            tiles = queries.query_places // WORDS_A_TILE
            counts = np.zeros(queries.query_places // queries.slot, np.int32)
            counts[:count] = queries.lengths
            sent = queries.query, arena.send("word_counts", counts), queries.word_scale
            blocks = -(-rows.count // PAIR_ROWS) * tiles
            numbers = rows.count, count, tiles, temperature
            self._launch(f"pairs_{queries.slot}", blocks, (*places, *sent, scores), *numbers)
            return
        sent = queries.query, queries.starts, queries.word_scale
        numbers = rows.count, queries.query_places, count, temperature
        blocks = -(-rows.count // SCAN_ROWS) * count
        self._launch(f"scan_{_tile(queries.lengths)}", blocks, (*places, *sent, scores), *numbers)

    def _launch(self, name: str, blocks: int, addresses: Sequence[int], *numbers: float) -> None:
        function = self._record.functions[name]
        if blocks:
            self._arena.flush()
            kernel, stream = self._kernels[name], self._arena.stream
            self._device.launch_kernel(kernel, blocks, function.threads, addresses, numbers, stream)


def _picks(k: int, rows: int) -> int:
    """How many rows are picked for the k-th largest true score, if it is looked for."""
    return min(k + BEYOND, rows) if k + BEYOND <= PICKS[-1] else 0


def _bounds(lists: DeviceLists, rows: HeldRows) -> tuple[int, ...]:
    """What a kernel reads to bound scores."""
    return lists.scores, rows.error, rows.norm, rows.blocks, rows.plans, lists.terms


def _tile(lengths: Sequence[int]) -> int:
    """How many words of queries of such lengths a kernel takes at once."""
    return next((size for size in WORD_TILES if size >= max(lengths)), WORD_TILES[-1])


def _levels_for(rows: HeldRows, queries: Queries) -> list[Levels | None]:
    """The level that is read first for these queries, if one is; then none, for where it leaves too many rows."""
    return [rows.levels, None] if rows.levels is not None and serves(queries) else [None]


def _slot(queries: Queries) -> int | None:
    """How many places `pairs` gives each of these queries; None where they are scanned for one by one."""
    longest = max(len(query) for query in queries)
    slot = next((slot for slot in SLOTS if slot >= longest), None)
    return slot if slot is not None and len(queries) * slot >= WORDS_A_TILE else None


def _pieces(queries: Queries, turn: int) -> list[list[int]]:
    """The queries' numbers, those of one launch together, which are at most `turn`."""
    step = min(turn, _QUERIES)
    return [numbers[begin : begin + step] for numbers in _alike(queries) for begin in range(0, len(numbers), step)]


def _alike(queries: Queries) -> list[list[int]]:
    """The queries' numbers, those together that `pairs` gives as many places; all where they fill no tile of it."""
    if len(queries) * SLOTS[0] < WORDS_A_TILE:
        return [list(range(len(queries)))]
    slots = np.searchsorted(SLOTS, [len(query) for query in queries])  # beyond the last one they are too long
    return [np.flatnonzero(slots == slot).tolist() for slot in range(len(SLOTS) + 1) if (slots == slot).any()]
