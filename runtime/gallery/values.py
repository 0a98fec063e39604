"""The one door for values that callers bring into a gallery: ids, metadata and the values of filters.

Ids and metadata often come from a NumPy array or a pandas column. What means the same as a JSON value becomes that
value; everything else is refused with its place, before anything is written.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..errors import InputError

if TYPE_CHECKING:
    from .store.rows import Relabel

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

_SHOWN = 5  # ids that an error names
MAX_DEPTH = 32  # of nested metadata: no recursion over it comes near Python's limit
MAX_VALUES = 100_000  # of one row's metadata
# Kinds of NumPy's arrays that become other things: nanoseconds a bare integer, NaT -2^63, a record its values alone.
_NOT_JSON = {
    "M": "make it text: numpy.datetime_as_string",
    "m": "make it a number of seconds: value / numpy.timedelta64(1, 's')",
    "V": "make it an object of its fields",
}
_MAX_BITS = 2048  # Python refuses to write or read integers of more than 4,300 digits, or 640 where it is set so


def checked_ids(ids: Iterable[object], name: str = "ids") -> list[str]:
    """Ids as plain text, in order.

    Text of any kind (`str`, `numpy.str_`, an enum of `str`) is taken as it is, and integers (`int`, `numpy.integer`)
    as their decimal digits.

    Args:
        ids: the ids.
        name: what to call them in an error.

    Raises:
        InputError: `ids` is one text, or no sequence; an id is neither text nor an integer, or is text that UTF-8
            cannot encode. The message names the place and the value.
    """
    if isinstance(ids, str | bytes | bytearray | memoryview):
        raise InputError(f"{name}: must be a sequence of ids, got the single value {ids!r}; pass [{ids!r}]")
    try:
        items = list(ids)
    except TypeError:
        raise InputError(f"{name}: must be a sequence of ids, got {ids!r} ({type(ids).__name__})") from None
    return [_checked_id(id, f"{name}[{i}]") for i, id in enumerate(items)]


def checked_metadata(metadata: Sequence[Mapping[str, Any]]) -> list[dict[str, Json]]:
    """Metadata of rows as plain JSON objects; NumPy's scalars and arrays, tuples and text become what they mean.

    Raises:
        InputError: a row is no mapping, a key is not text, or a value has no JSON form (NaN and infinity have none).
            The message names the row, the key and the value.
    """
    if isinstance(metadata, str | bytes | Mapping) or not isinstance(metadata, Iterable):
        raise InputError(f"metadata: must be a sequence of mappings, one for each row, got {type(metadata).__name__}")
    rows = []
    for i, row in enumerate(metadata):
        if not isinstance(row, Mapping):
            raise InputError(f"metadata[{i}]: must be a mapping, got {row!r} ({type(row).__name__})")
        rows.append(_Converter().mapping(row, f"metadata[{i}]", 1))
    return rows


def checked_row(metadata: Mapping[str, Any]) -> dict[str, Json]:
    """Metadata of one row of a file, as `checked_metadata`; an error names the key, and the caller the row."""
    return _Converter().mapping(metadata, "metadata", 1)


def checked_roots(roots: Mapping[str, str]) -> dict[str, str]:
    """Roots of an index (name -> folder) as plain text.

    Raises:
        InputError: `roots` is no mapping, or a name or a folder is not text that UTF-8 can encode.
    """
    if not isinstance(roots, Mapping):
        raise InputError(f"roots: must be a mapping of names to folders, got {roots!r} ({type(roots).__name__})")
    plain = _Converter().mapping(roots, "roots", 1)
    checked = {name: folder for name, folder in plain.items() if isinstance(folder, str)}
    if len(checked) < len(plain):
        name = next(name for name in plain if name not in checked)
        raise InputError(f"roots[{name!r}]: must be text, got {roots[name]!r}")
    return checked


def json_value(value: object, place: str) -> Json:
    """One value as plain JSON.

    Raises:
        InputError: it has no JSON form; the message begins with `place`.
    """
    return _Converter().value(value, place, 1)


def same(left: Json, right: Json) -> bool:
    """Whether two JSON values are equal: numbers by value, whatever their type; a boolean is no number."""
    if isinstance(left, bool) or isinstance(right, bool):
        return isinstance(left, bool) and isinstance(right, bool) and left == right
    if isinstance(left, int | float) and isinstance(right, int | float):
        return left == right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return type(left) is type(right) and left == right


def _checked_id(id: object, place: str) -> str:
    if isinstance(id, str):
        return plain_text(id, place)
    if isinstance(id, int | np.integer) and not isinstance(id, bool | np.bool_):
        return str(_plain_integer(id, place))
    raise InputError(f"{place}: must be text or an integer, got {id!r} ({type(id).__name__})")


def _plain_integer(value: int | np.integer, place: str) -> int:
    """An integer as exactly `int`; InputError, which begins with `place`, for one that Python would not write out."""
    plain = int(value)
    if plain.bit_length() > _MAX_BITS:
        raise InputError(f"{place}: must be an integer of at most {_MAX_BITS} bits, got {plain.bit_length()} bits")
    return plain


def plain_text(value: str, place: str) -> str:
    """Text as exactly `str`.

    Raises:
        InputError: UTF-8 cannot encode it; the message begins with `place`.
    """
    plain = str.__str__(value)  # of a subclass: its characters, not what its own __str__ makes of them
    try:
        plain.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: must be text that UTF-8 can encode, got {plain!a}") from error
    return plain


class _Converter:
    """Converts one row's values and counts them."""

    def __init__(self) -> None:
        self._count = 0

    def mapping(self, value: Mapping[Any, Any], place: str, depth: int) -> dict[str, Json]:
        result: dict[str, Json] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise InputError(f"{place}: a key must be text, got {key!r} ({type(key).__name__})")
            text = plain_text(key, f"{place}: a key")
            result[text] = self.value(item, f"{place}[{text!r}]", depth + 1)
        return result

    def value(self, value: object, place: str, depth: int) -> Json:
        self._count += 1
        if self._count > MAX_VALUES:
            raise InputError(f"{place}: there must be at most {MAX_VALUES} values, got more")
        if depth > MAX_DEPTH:
            raise InputError(f"{place}: must be nested at most {MAX_DEPTH} deep, got more")
        if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in _NOT_JSON:
            hint = _NOT_JSON[value.dtype.kind]
            raise InputError(f"{place}: must be a JSON value, got {value!r} ({value.dtype}); {hint}")
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return _plain_integer(value, place)
        if isinstance(value, float):
            if not math.isfinite(value):
                raise InputError(f"{place}: must be finite, got {value}; leave it out, or make it null")
            return float(value)
        if isinstance(value, str):
            return plain_text(value, place)
        if isinstance(value, np.ndarray):
            value = value.tolist()
            if not isinstance(value, list):
                return self.value(value, place, depth)
        if isinstance(value, Mapping):
            return self.mapping(value, place, depth)
        if isinstance(value, list | tuple):
            return [self.value(item, f"{place}[{i}]", depth + 1) for i, item in enumerate(value)]
        raise InputError(f"{place}: must be a JSON value, got {value!r} ({type(value).__name__})")


def check_relabels(
    changes: Sequence[Relabel], there: Callable[[Sequence[str]], set[str]]
) -> tuple[list[str], list[str]]:
    """The ids of rows that are relabeled, and what they become.

    Args:
        changes: what is asked for.
        there: returns those of some ids that the gallery has.

    Raises:
        InputError: an id that the gallery does not have, one that is changed twice, a new id that it has already.
    """
    ids = checked_ids((change.id for change in changes), "changes")
    new_ids = checked_ids((change.new_id for change in changes), "changes")
    found = there(ids)
    check_known(ids, found, "changes")
    taken = there(new_ids) - set(ids)
    if taken or len(set(new_ids)) < len(new_ids):
        raise InputError(f"changes: a new id must be free, got {', '.join(sorted(taken)[:5]) or 'one twice'}")
    check_unique(ids, "changes")
    return ids, new_ids


def check_known(ids: Iterable[str], there: Container[str], name: str) -> None:
    """InputError where an id is not among those that are there; `name` is what to call them."""
    missing = [id for id in dict.fromkeys(ids) if id not in there]
    if missing:
        raise unknown_ids(missing, name)


def unknown_ids(ids: Sequence[str], name: str) -> InputError:
    """The error of ids that a gallery does not have; `name` is what to call them."""
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return InputError(f"{name}: not in the gallery: {', '.join(ids[:_SHOWN])}{more}; `chan gallery list` shows its ids")


def check_unique(ids: Sequence[str], name: str) -> None:
    """InputError where an id stands twice; `name` is what to call them."""
    twice = [id for id, count in Counter(ids).items() if count > 1]
    if twice:
        raise InputError(f"{name}: must be unique, got {', '.join(sorted(twice)[:5])}")


def as_json(metadata: Sequence[Mapping[str, Any]]) -> list[str]:
    """Checked metadata as it is stored."""
    return [json.dumps(row, sort_keys=True, allow_nan=False) for row in metadata]
