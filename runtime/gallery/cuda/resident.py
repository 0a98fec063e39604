"""What a search asks of a gallery in a GPU's memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..proof.pooling import Float64Array
from ..proof.rows import Part
from .decide import Decided


class Listed(NamedTuple):
    """The rows that could be among a query's best.

    Attributes:
        rows: int64 [n], ascending.
        scores: float64 [n], from what the GPU holds of them.
        radii: float64 [n], no less than how far these are from the true scores; 0 of a scan that is not certified.
        threshold: k rows have true scores no less than that, or it is the floor, or -inf; only of a certified scan.
    """

    rows: NDArray[np.int64]
    scores: Float64Array
    radii: Float64Array
    threshold: float


Queries = Sequence[NDArray[np.float32]]  # each query's vectors [Q_i, D]


class Decide(Protocol):
    """Decides among the rows that `ResidentScan.shortlist` would list; its first arguments are as there."""

    def __call__(
        self,
        queries: Queries,
        k: int,
        allowed: NDArray[np.bool_],
        floors: Float64Array,
        turn: int,
        use: Callable[[Decided], None],
    ) -> None:
        """Decide about some queries at a time, and call `use` with what was decided while the GPU computes the next.

        Args:
            turn: how many queries at most at a time.
            use: is called by one thread at a time, each time for other queries, in any order. Its errors are raised
                here; then nothing is under way on the GPU.
        """


class ResidentScan(Protocol):
    """Rows on a GPU. Any number of threads may use one: uploads take turns, and searches take turns beside them.

    Attributes:
        name: what runs, for messages and benchmarks.
        certified: whether every row of the true top k is listed; otherwise the k rows of the best scores are.
    """

    name: str
    certified: bool

    def require(self, parts: Sequence[Part]) -> None:
        """GpuMemoryError, which says what to do, if there is no room for those of these parts that are not held yet."""

    def hold(self, part: Part) -> Any:
        """A part on the device; uploaded once, and freed when nothing refers to what this returned."""

    def gather(self, held: Sequence[Any]) -> Any:
        """Parts as one sequence of rows, numbered on from part to part."""

    def shortlist(
        self, rows: Any, queries: Queries, k: int, allowed: NDArray[np.bool_], floors: Float64Array
    ) -> list[Listed]:
        """For each query the rows that could be among the allowed ones' best k and reach its floor.

        Args:
            rows: what `gather` returned.
            queries: their vectors [Q_i, D].
            k: how many rows are wanted.
            allowed: [N], the rows to choose among.
            floors: float64 [queries], true scores that rows must reach; a scan that is not certified ignores them.
        """

    def decider(self, rows: Any) -> Decide | None:
        """What decides among rows by their fine copies on the device, which are freed with it; None without them.

        rows: what `gather` returned.
        """

    def close(self) -> None:
        """Free all device memory; twice does no harm."""


def hold_all(scan: ResidentScan, parts: Sequence[Part]) -> Any:
    """All parts on the device as one sequence of rows; GpuMemoryError before the first upload if they do not fit."""
    scan.require(parts)
    return scan.gather([scan.hold(part) for part in parts])
