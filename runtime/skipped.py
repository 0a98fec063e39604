"""Items that a long run leaves out: each with its reason, and a limit on how many there may be."""

from __future__ import annotations

from dataclasses import dataclass

from .counts import counted
from .errors import InputError

MAX_BAD = 1000  # items a run may leave out before it stops, unless its caller chooses another limit


@dataclass(frozen=True)
class SkippedItem:
    """One item that was left out.

    Attributes:
        item: the name of the item: a path, or an id.
        reason: why it could not be used.
    """

    item: str
    reason: str


class Skipped:
    """The items that a run left out so far.

    Args:
        limit: how many items may be left out; the next one stops the run.

    Raises:
        InputError: the limit is negative.
    """

    def __init__(self, limit: int = MAX_BAD) -> None:
        if limit < 0:
            raise InputError(f"max_bad must be 0 or more, got {limit}")
        self.limit = limit
        self._items: list[SkippedItem] = []

    @property
    def items(self) -> tuple[SkippedItem, ...]:
        """Every item that was left out, in the order of the run."""
        return tuple(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: SkippedItem) -> None:
        """Leave an item out.

        Raises:
            InputError: this is one more than the limit; what was finished before is kept.
        """
        self._items.append(item)
        if len(self._items) > self.limit:
            raise InputError(
                f"max_bad: at most {counted(self.limit, 'item')} may be unreadable, and this is one more: "
                f"{item.item}: {item.reason}"
            )
