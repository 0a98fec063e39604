"""How far a piece of work is, for whoever waits for it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], object]  # (work that is done, work in all)


class WorkCounter:
    """Counts work of a known amount, and reports it.

    Args:
        total: the amount.
        report: called with what is done and the total after each piece of work; None for nobody.

    Attributes:
        done: how much is done.
    """

    def __init__(self, total: int, report: Progress | None = None) -> None:
        self._total = total
        self._report = report
        self.done = 0

    def add(self, count: int) -> None:
        """Count more work as done."""
        self.reach(self.done + count)

    def reach(self, done: int) -> None:
        """Set how much work is done; less than before changes nothing."""
        self.done = max(self.done, min(done, self._total))
        if self._report is not None:
            self._report(self.done, self._total)
