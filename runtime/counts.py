"""Numbers with the things that they count, in words."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """A number with what it counts: `counted(1, "row")` is `1 row`, `counted(2, "query")` is `2 queries`.

    Args:
        number: how many there are.
        one: what stands after 1.
        many: what stands after every other number; left out, it is the plural of `one`.
    """
    if not many and one.endswith("y") and one[-2:-1] not in "aeou":
        many = f"{one[:-1]}ies"
    elif not many:
        many = f"{one}es" if one.endswith(("s", "x", "ch")) else f"{one}s"
    return f"{number} {one if number == 1 else many}"
