"""Ids that an earlier version stored under the sum of their Python form, and what they are as text.

Until schema 2 a row's sum was taken over `repr(id)` of whatever was given as an id, while SQLite stored text, or eight
bytes for `numpy.int64(7)`. Such a row is whole, but its sum is not that of what is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

_INTEGERS = {1: ("int8", "uint8"), 2: ("int16", "uint16"), 4: ("int32", "uint32"), 8: ("int64", "uint64")}


def mended_id(stored: str | bytes, has_sum_of: Callable[[str], bool]) -> str | None:
    """The id as text, if `stored` is what some Python value became whose form has the row's sum; otherwise None.

    Args:
        stored: the id as SQLite has it.
        has_sum_of: whether the row's sum is the one with this Python form of the id.
    """
    return next((id for id, form in _candidates(stored) if has_sum_of(form)), None)


def _candidates(stored: str | bytes) -> Iterator[tuple[str, str]]:
    """(id as text, Python form) of the values that are stored so."""
    if isinstance(stored, bytes):
        for index, name in enumerate(_INTEGERS.get(len(stored), ())):
            number = str(int.from_bytes(stored, "little", signed=index == 0))
            yield number, f"np.{name}({number})"
        if stored in (b"\0", b"\1"):
            yield str(bool(stored[0])), f"np.{bool(stored[0])}_"
        return
    yield stored, f"np.str_({stored!r})"
    yield stored, stored  # an integer: SQLite stored its digits
    if stored in ("0", "1"):
        yield stored, str(stored == "1")
    try:
        number = repr(float(stored))
    except ValueError:
        return
    yield stored, number
    yield stored, f"np.float64({number})"
