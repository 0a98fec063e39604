"""Rules that arguments of many functions share, each checked and worded in one place."""

from __future__ import annotations

from collections.abc import Iterable

from .errors import InputError


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """InputError unless `value` is one of `choices`; `name` is what the caller calls the argument."""
    allowed = tuple(choices)
    if value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def check_choices(name: str, values: Iterable[str], choices: Iterable[str]) -> None:
    """InputError unless `values` are one or more of `choices`."""
    given, allowed = tuple(values), tuple(choices)
    unknown = [value for value in given if value not in allowed]
    if unknown or not given:
        raise InputError(
            f"{name} must be one or more of {', '.join(allowed)}, got {', '.join(map(repr, unknown)) or 'none'}"
        )
