"""How queries are parted among launches: those that one kernel takes at once, and no more than a call has room for."""

from __future__ import annotations

import numpy as np

from .held import HeldRows
from .kernels import SLOTS, WORDS_A_TILE
from .levels import Levels, serves
from .resident import Queries

_QUERIES = 512  # of one launch: their vectors and lists stay within some tens of MiB


def levels_for(rows: HeldRows, queries: Queries) -> list[Levels | None]:
    """The level that is read first for these queries, if one is; then none, for where it leaves too many rows."""
    return [rows.levels, None] if rows.levels is not None and serves(queries) else [None]


def slot_of(queries: Queries) -> int | None:
    """How many places `pairs` gives each of these queries; None where they are scanned for one by one."""
    longest = max(len(query) for query in queries)
    slot = next((slot for slot in SLOTS if slot >= longest), None)
    return slot if slot is not None and len(queries) * slot >= WORDS_A_TILE else None


def pieces_of(queries: Queries, turn: int) -> list[list[int]]:
    """The queries' numbers, those of one launch together, which are at most `turn`."""
    step = min(turn, _QUERIES)
    return [numbers[begin : begin + step] for numbers in _alike(queries) for begin in range(0, len(numbers), step)]


def _alike(queries: Queries) -> list[list[int]]:
    """The queries' numbers, those together that `pairs` gives as many places; all where they fill no tile of it."""
    if len(queries) * SLOTS[0] < WORDS_A_TILE:
        return [list(range(len(queries)))]
    slots = np.searchsorted(SLOTS, [len(query) for query in queries])  # beyond the last one they are too long
    return [np.flatnonzero(slots == slot).tolist() for slot in range(len(SLOTS) + 1) if (slots == slot).any()]
