"""Queries on a GPU: their vectors are sent once, and their codes and the numbers of their bounds are made there.

The numbers are those of bounds.py: of (1) and (1'), with R(q) of (3') in place of ||q_rest||, and of (2). In numpy this
takes longer than the GPU needs for all that follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...contract import AlignmentConfig
from ..proof.bounds import MOST_BLOCKS
from ..proof.prefix import CODE_AXES
from .kernels import WORDS_A_TILE
from .memory import Arena
from .plans import SentPlans

_EXACT = "exact"  # name of the queries' vectors in the arena
_MORE = 1 + 1e-9  # for the few float64 operations of `terms`, and for those of `radius` with its numbers


class SentQueries(NamedTuple):
    """Some queries on the device, by address.

    Attributes:
        lengths: how many vectors each has.
        slot: how many places each has among the coded ones; None where they follow each other.
        exact: float32 [words of all, width].
        starts: int32 [queries + 1], where each query's vectors begin.
        query: [planes, query_places, width], the coded ones: two planes of int8, or one of float16.
        query_starts: int32 [queries], the place of each query's first vector.
        query_places: how many places there are, a whole number of tiles with a slot.
        word_scale: float64 [query_places].
        norms, errors: float64 [words], which `quantize` writes: ||q||^2 and ||dq||^2.
        margins: float64 [queries], which `terms` writes: twice what a true score's own rounding can be, (2).
    """

    lengths: tuple[int, ...]
    slot: int | None
    exact: int
    starts: int
    query: int
    query_starts: int
    query_places: int
    word_scale: int
    norms: int
    errors: int
    margins: int

    def alone(self, which: int) -> SentQueries:
        """Without the queries before one."""
        starts, query_starts = self.starts + 4 * which, self.query_starts + 4 * which
        later = {"starts": starts, "query_starts": query_starts, "margins": self.margins + 8 * which}
        return self._replace(lengths=self.lengths[which:], **later)


class QuerySender:
    """Sends queries, and queues the kernels that make them ready.

    Args:
        arena: where they lie.
        launch: queues a kernel, given its name, the blocks, the addresses and the numbers.
        certified: whether they are coded for products of int8; otherwise in half.
        width: values that a vector takes, padding included.
        dim: D.
        alignment: how scores are made.
    """

    def __init__(
        self,
        arena: Arena,
        launch: Callable[..., None],
        certified: bool,
        width: int,
        dim: int,
        alignment: AlignmentConfig,
    ) -> None:
        self._arena, self._launch, self._alignment = arena, launch, alignment
        self._certified, self._width, self._dim = certified, width, dim

    def send(self, queries: Sequence[NDArray[np.float32]], slot: int | None) -> SentQueries:
        """Queue the copy of the queries' vectors [Q_i, D], and their coding.

        slot: how many places each query has in the tiles of `pairs`; None where their vectors follow each other.
        """
        arena, lengths = self._arena, tuple(map(len, queries))
        words, count = sum(lengths), len(queries)
        exact = arena.send_rows(_EXACT, queries, self._width)
        starts = query_starts = arena.send("word_starts", np.cumsum([0, *lengths], dtype=np.int32))
        word_of = np.arange(words, dtype=np.int32)
        if slot is not None:
            held = np.full((-(-count * slot // WORDS_A_TILE) * WORDS_A_TILE // slot, slot), -1, np.int32)
            held[:count][np.arange(slot) < np.array(lengths)[:, None]] = word_of
            word_of = held.reshape(-1)
            query_starts = arena.send("query_starts", np.arange(count, dtype=np.int32) * slot)
        places = len(word_of)
        query = arena.scratch("query", 2 * places * self._width)  # two planes of bytes, or one of half numbers
        scale, margins = arena.scratch("word_scale", 8 * places), arena.scratch("margins", 8 * count)
        norms, errors = arena.scratch("norms", 8 * words), arena.scratch("errors", 8 * words)
        addresses = exact, arena.send("word_of", word_of), query, scale, norms, errors
        self._launch("quantize", places, addresses, places)
        return SentQueries(lengths, slot, exact, starts, query, query_starts, places, scale, norms, errors, margins)

    def send_ahead(self, queries: Sequence[NDArray[np.float32]]) -> None:
        """Make the next `send` of these queries, the same object, shorter, while the GPU computes."""
        self._arena.send_ahead(_EXACT, queries, self._width)

    def terms(self, sent: SentQueries, plans: SentPlans, largest: float) -> int:
        """Queue how far rows' scores can be off: the address of float64 [queries, plans, 6 + MOST_BLOCKS].

        A constant, what a change of similarity adds, what a unit of the row's norm and of its error add beside it; then
        the factors of (1) and (1'), by which the change of similarity follows from the row's error and its blocks.
        `int8_radius` is affine in all of these.

        largest: no less than the norm of any row's vector.
        """
        arena, alignment, count = self._arena, self._alignment, len(sent.lengths)
        num_plans = len(plans.columns)
        size = 8 * count * num_plans * (6 + MOST_BLOCKS)
        if not self._certified:
            return arena.send("terms", np.zeros(size // 8))
        target = arena.scratch("terms", size)
        slope = 1 / alignment.pooling_temperature if alignment.pooling == "LSE" else 1.0
        lost = 4 * np.sqrt(CODE_AXES) * (self._dim + CODE_AXES) * 2.0**-53
        numbers = float(slope), float(alignment.pooling_temperature), float(lost), _MORE, largest
        axes = plans.base, plans.places, plans.block_of, plans.held
        addresses = (sent.exact, sent.norms, sent.errors, sent.starts, *axes, target, sent.margins)
        self._launch("terms", count * num_plans, addresses, num_plans, self._dim, *numbers)
        return target
