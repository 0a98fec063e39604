"""What is queued on a GPU to list the rows that could be among the best: scores, bounds, thresholds and the lists.

The k-th largest is taken of the largest lower bounds of groups of rows, at most MOST_GROUPS of them: of one row each in
a small gallery. Where two of the best k share a group the threshold is a little lower, and the list a little longer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...contract import AlignmentConfig
from ..proof.bounds import MOST_BLOCKS
from ..proof.pooling import Float64Array
from ..proof.prefix import AXES
from .decide import PAIR_BYTES, RESULTS
from .held import HeldRows
from .kernels import (
    BOUND_ROWS,
    GROUPS,
    LIST_ROWS,
    LISTED_BLOCKS,
    MOST_GROUPS,
    PAIR_ROWS,
    PICKS,
    PROJECT_AXES,
    PROJECT_WORDS,
    SCAN_ROWS,
    WORD_TILES,
    WORDS_A_TILE,
    KernelRecord,
)
from .levels import FEW, SHARE, Levels
from .lists import DeviceLists
from .memory import Arena
from .queries import QuerySender, SentQueries

BEYOND = 22  # rows beyond k whose true scores give the threshold, where the GPU holds the fine copy
CAPACITY = 4096  # rows a query's list holds; where more qualify, it is made again with room for all

Truth = Callable[[DeviceLists, SentQueries, int, int, int], None]  # lists, their queries, k, see `ListQueue.queue`


class ListQueue:
    """Queues the kernels that list rows. Callers take turns.

    Args:
        arena: what lists and scores are allocated in.
        launch: queues a kernel, given its name, the blocks, the addresses and the numbers.
        record: of the kernels.
        sender: what sent the queries.
        alignment: how similarities become scores.

    Attributes:
        upper: address of the first level's bounds, float64 [queries, rows], of the last search that read it.
    """

    def __init__(
        self,
        arena: Arena,
        launch: Callable[..., None],
        record: KernelRecord,
        sender: QuerySender,
        alignment: AlignmentConfig,
    ) -> None:
        self._arena, self._launch, self._sender, self._alignment = arena, launch, sender, alignment
        self._certified, self._stride = record.precision == "int8", record.stride
        self.upper = 0

    def queue(
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
        start = floors if self._certified else np.full(count, -np.inf)
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
        upper = self.upper = arena.scratch("upper", 8 * count * rows.count)
        allowed_at = self._allowed(rows, allowed)
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
        blocks = min(-(-lists.capacity // SCAN_ROWS), LISTED_BLOCKS // lists.queries) * lists.queries
        temperature = float(self._alignment.pooling_temperature)
        numbers = rows.count, queries.query_places, lists.queries, lists.capacity
        self._launch(f"scan_listed_{_tile(queries.lengths)}", blocks, addresses, *numbers, temperature)

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

    def again(self, lists: DeviceLists, rows: HeldRows, which: int, threshold: Float64Array) -> DeviceLists:
        """Queue the list of one query, with room for every row."""
        long = self._make_lists("long list", rows.count, lists.scores + 8 * which * rows.count, threshold)
        terms = lists.terms + 8 * which * len(rows.coded.columns) * (6 + MOST_BLOCKS)
        long = long._replace(terms=terms)
        self._fill(long, rows)
        return long

    def _score(self, rows: HeldRows, queries: SentQueries, allowed: NDArray[np.bool_], scores: int) -> None:
        """Queue the scan of every row: of many queries as one product, of few one by one."""
        arena, count = self._arena, len(queries.lengths)
        places = rows.base, rows.places, rows.lengths, rows.scale, self._allowed(rows, allowed)
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

    def _allowed(self, rows: HeldRows, allowed: NDArray[np.bool_]) -> int:
        """Address of which rows are allowed, uint8 [rows]."""
        return rows.everything if allowed.all() else self._arena.send("allowed", allowed)


def _picks(k: int, rows: int) -> int:
    """How many rows are picked for the k-th largest true score, if it is looked for."""
    return min(k + BEYOND, rows) if k + BEYOND <= PICKS[-1] else 0


def _bounds(lists: DeviceLists, rows: HeldRows) -> tuple[int, ...]:
    """What a kernel reads to bound scores."""
    return lists.scores, rows.error, rows.norm, rows.blocks, rows.plans, lists.terms


def _tile(lengths: Sequence[int]) -> int:
    """How many words of queries of such lengths a kernel takes at once."""
    return next((size for size in WORD_TILES if size >= max(lengths)), WORD_TILES[-1])
