"""Rules that arguments of many functions share, each checked and worded in one place."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable
from typing import TypeVar

from .errors import InputError

MAX_THREADS = 1024  # a million ended in the system killing the process for its memory

_Choice = TypeVar("_Choice", bound=str)
_Item = TypeVar("_Item")


def check_paths(name: str, value: object) -> None:
    """InputError if `value` is one path where a list is needed: the letters of a path would be read as paths."""
    if isinstance(value, str | bytes | os.PathLike):
        raise InputError(f"{name} must be a list, got one path: write [{os.fspath(value)!r}]")


def as_list(name: str, values: Iterable[_Item]) -> list[_Item]:
    """The values that the caller calls `name`, in their order, which is that of what is returned for them.

    Raises:
        InputError: they are one path, have no order, as a set has none, or are no values.
    """
    check_paths(name, values)
    if isinstance(values, set | frozenset):
        raise InputError(f"{name} must have an order, got a {type(values).__name__}")
    try:
        return list(values)
    except TypeError:
        raise InputError(f"{name} must be a list, got {type(values).__name__}") from None


def check_choice(name: str, value: object, choices: Iterable[_Choice]) -> _Choice:
    """Return `value` if it is one of `choices`; `name` is what the caller calls the argument.

    Raises:
        InputError: names the argument, the choices and the value.
    """
    allowed = tuple(choices)
    for choice in allowed:
        if value == choice:
            return choice
    raise InputError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def check_positive(name: str, value: object) -> int:
    """Return `value` as an `int` if it is an integer above 0 (`int` or `numpy.integer`).

    Raises:
        InputError: names the argument and the value.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"{name} must be a positive integer, got {value!r}") from None
    if number < 1:
        raise InputError(f"{name} must be positive, got {number}")
    return number


def check_threads(threads: int | None) -> None:
    """InputError unless a number of CPU threads is positive and no more than a machine can start, or None."""
    if threads is not None and check_positive("threads", threads) > MAX_THREADS:
        raise InputError(f"threads must be at most {MAX_THREADS}, got {threads}")


def check_choices(name: str, values: Iterable[str], choices: Iterable[str]) -> None:
    """InputError unless `values` are one or more of `choices`."""
    given, allowed = tuple(values), tuple(choices)
    unknown = [value for value in given if value not in allowed]
    if unknown or not given:
        raise InputError(f"{name} must be one or more of {', '.join(allowed)}, got {', '.join(unknown) or 'none'}")
