"""The lists that a scan makes, as they lie on the GPU."""

from __future__ import annotations

from typing import NamedTuple


class DeviceLists(NamedTuple):
    """Some queries' lists as they lie on the device, by address; complete once all that was queued is done.

    Attributes:
        queries: how many there are.
        capacity: rows that each list holds.
        scores: float64 [queries, N], every row's, for a query whose list is longer than that; -inf where a row cannot
            be among the best.
        thresholds: float64 [queries].
        found: int32 [queries], how many rows each list would have.
        rows: int32 [queries, capacity], in no order.
        values: float64 [queries, capacity], their scores.
        radii: float64 [queries, capacity], how far these can be off.
        picked: int32 [queries], how many rows were picked for the threshold.
        terms: float64 [queries, plans, 6 + MOST_BLOCKS], from which that follows; see `KernelScan`.
        candidates: int32 [queries], how many rows the first level of a plan left; 0 where it was not read.
        room: for how many of these there was room. Where there were more, the lists are worth nothing.
    """

    queries: int
    capacity: int
    scores: int
    thresholds: int
    found: int
    rows: int
    values: int
    radii: int
    picked: int
    terms: int
    candidates: int = 0
    room: int = 0
