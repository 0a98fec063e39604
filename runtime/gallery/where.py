"""Filters over the metadata of rows: `{"year": 2020}`, `{"year": {"$gte": 2000}, "$or": [...]}`.

A filter is a mapping. Each entry must hold for a row to pass:

    {"key": value}                        the row has the key, and its value equals `value`
    {"key": {"$eq": v}}  {"$ne": v}       equal; present and not equal
    {"key": {"$in": [...]}}               equal to one of these
    {"key": {"$gt": v, "$lte": w}}        numbers with numbers, text with text (also $gte, $lt)
    {"key": {"$contains": v}}             a list that has the element v, or text that has the text v
    {"key": {"$exists": True}}            the row has the key; False: it has not
    {"$and": [...]}  {"$or": [...]}       all of, or one of some filters
    {"$not": {...}}                       the filter does not hold

Values compare by their JSON type: 1 equals 1.0, but neither "1" nor true. Null equals only null. A value of another
type than the one asked for does not pass and is no error, because each row brought its own metadata.
"""

from __future__ import annotations

import difflib
import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..errors import InputError, quoted, shortened
from ..strict_json import unique_keys
from .store.rows import Row
from .values import MAX_DEPTH, Json, json_value, plain_text, same

Where: TypeAlias = "Mapping[str, Any]"
_Test: TypeAlias = "Callable[[Mapping[str, Any]], bool]"

_ORDER: Mapping[str, Callable[[Any, Any], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
_CONDITIONS = ("$eq", "$ne", "$in", *_ORDER, "$contains", "$exists")
_JOINS = ("$and", "$or", "$not")


@dataclass(frozen=True)
class Filter:
    """A filter that was checked.

    Attributes:
        matches: whether a row's metadata passes.
        keys: metadata keys that it compares, in order; a key that is only asked for by `$exists` is not one.
        text: the filter as JSON; filters of the same text and the same hidden keys pass the same rows.
        hidden: metadata keys that no row has, as far as this filter can tell.
    """

    matches: Callable[[Mapping[str, Any]], bool] = field(compare=False)
    keys: tuple[str, ...]
    text: str
    hidden: tuple[str, ...] = ()

    @classmethod
    def parse(cls, where: Where | Filter, hidden: tuple[str, ...] = ()) -> Filter:
        """Check a filter as the head of this module describes it; one that was checked is returned as it is.

        Args:
            where: the filter.
            hidden: metadata keys that it must not see, because whoever asks may not know their values.

        Raises:
            InputError: names the place in the filter, the rule and the value.
        """
        if isinstance(where, Filter):
            return where
        keys: dict[str, None] = {}
        matches = _filter(where, "where", keys, 1)
        text = json.dumps(json_value(where, "where"), sort_keys=True)
        return cls(_without(hidden, matches) if hidden else matches, tuple(keys), text, hidden)

    def choose(self, rows: Sequence[Row]) -> list[Row]:
        """The rows whose metadata passes.

        Raises:
            InputError: a key that none of the rows has.
        """
        if rows:
            self.check_keys(key for row in rows for key in row.metadata)
        return [row for row in rows if self.matches(row.metadata)]

    def check_keys(self, known: Iterable[str]) -> None:
        """Refuse a key that no row has: such a filter is misspelled more often than it is meant.

        Raises:
            InputError: names the key and those that come near.
        """
        names = set(known) - set(self.hidden)
        for key in self.keys:
            if key not in names:
                near = difflib.get_close_matches(key, names, 3)
                listed = ", ".join(map(repr, near or sorted(names)[:10]))
                has = f"{'similar keys' if near else 'the keys'} are {listed}" if listed else "no row has metadata"
                raise InputError(f"where: no row has the key {key!r}; {has} ($exists asks for a key without comparing)")


def _without(hidden: tuple[str, ...], test: _Test) -> _Test:
    """A test that does not see some keys."""
    return lambda metadata: test({key: value for key, value in metadata.items() if key not in hidden})


def _filter(where: object, place: str, keys: dict[str, None], depth: int) -> _Test:
    if not isinstance(where, Mapping):
        raise InputError(f"{place}: must be a mapping, got {where!r} ({type(where).__name__})")
    if depth > MAX_DEPTH:
        raise InputError(f"{place}: must be nested at most {MAX_DEPTH} deep, got more")
    tests = [_entry(key, value, place, keys, depth) for key, value in where.items()]
    return lambda metadata: all(test(metadata) for test in tests)


def _entry(key: object, value: object, place: str, keys: dict[str, None], depth: int) -> _Test:
    if not isinstance(key, str):
        raise InputError(f"{place}: a key must be text, got {key!r} ({type(key).__name__})")
    if key == "$not":
        inner = _filter(value, f"{place}.$not", keys, depth + 1)
        return lambda metadata: not inner(metadata)
    if key in _JOINS:
        if not isinstance(value, list | tuple) or not value:
            raise InputError(f"{place}.{key}: must be a list of filters, got {value!r}")
        parts = [_filter(part, f"{place}.{key}[{i}]", keys, depth + 1) for i, part in enumerate(value)]
        join = all if key == "$and" else any
        return lambda metadata: join(part(metadata) for part in parts)
    if key.startswith("$"):
        raise InputError(f"{place}: must use a metadata key or one of {', '.join(_JOINS)}, got {key!r}")
    operators = isinstance(value, Mapping) and any(isinstance(name, str) and name.startswith("$") for name in value)
    if not operators and isinstance(value, Mapping) and any(f"${name}" in _CONDITIONS for name in value):
        bare = next(name for name in value if f"${name}" in _CONDITIONS)
        rule = f"must write ${bare} for the condition, and $eq before an object that is meant as a value"
        raise InputError(f"{place}[{key!r}]: {rule}, got {bare!r}")
    conditions: Mapping[Any, Any] = value if operators else {"$eq": value}  # type: ignore[assignment]
    tests = [_condition(name, wanted, key, f"{place}[{key!r}]", keys) for name, wanted in conditions.items()]
    return lambda metadata: all(test(metadata) for test in tests)


def _condition(name: object, wanted: object, key: str, place: str, keys: dict[str, None]) -> _Test:
    if not isinstance(name, str) or name not in _CONDITIONS:
        raise InputError(f"{place}: a condition must be one of {', '.join(_CONDITIONS)}, got {name!r}")
    place = f"{place}.{name}"
    if name == "$exists":
        present = json_value(wanted, place)
        if not isinstance(present, bool):
            raise InputError(f"{place}: must be true or false, got {wanted!r}")
        return lambda metadata: (key in metadata) == present
    keys[plain_text(key, place)] = None
    value = json_value(wanted, place)
    if name == "$in":
        if not isinstance(value, list):
            raise InputError(f"{place}: must be a list, got {wanted!r}")
        return lambda metadata: key in metadata and any(same(metadata[key], one) for one in value)
    if name == "$contains":
        return lambda metadata: key in metadata and _contains(metadata[key], value)
    if name in _ORDER:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise InputError(f"{place}: must be a number or text, got {wanted!r}")
        compare = _ORDER[name]
        return lambda metadata: _ordered(metadata.get(key), value) and compare(metadata[key], value)
    if name == "$ne":
        return lambda metadata: key in metadata and not same(metadata[key], value)
    return lambda metadata: key in metadata and same(metadata[key], value)


def _ordered(left: Json, right: Json) -> bool:
    """Whether two values have an order: both numbers, or both text."""
    if isinstance(left, bool) or isinstance(right, bool):
        return False
    numbers = isinstance(left, int | float) and isinstance(right, int | float)
    return numbers or (isinstance(left, str) and isinstance(right, str))


def _contains(left: Json, value: Json) -> bool:
    if isinstance(left, list):
        return any(same(one, value) for one in left)
    return isinstance(left, str) and isinstance(value, str) and value in left


_WORDS: Mapping[str, bool | None] = {"true": True, "false": False, "null": None}
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
# What people and programs also write for numbers: 1_000, 1,000, 1'000, 0x1F, inf, nan, digits of other scripts.
_LIKE_A_NUMBER = re.compile(
    r"[+-]?(?:\d[\d_,']*(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?|0[xob][\da-f_]+|inf|infinity|nan)", re.IGNORECASE
)
_SIGNS: Mapping[str, str] = {
    ">=": "$gte",
    "<=": "$lte",
    "!=": "$ne",
    "=": "$eq",
    ">": "$gt",
    "<": "$lt",
    "~": "$contains",
}


def parse_words(conditions: Sequence[str]) -> dict[str, Any]:
    """The filter that texts such as `year>=2000` mean together, as a command line gives them.

    Each is KEY=VALUE, KEY!=VALUE, KEY<VALUE, KEY<=VALUE, KEY>VALUE, KEY>=VALUE, KEY~VALUE (contains), KEY (the row has
    it), !KEY (it has not), or a whole filter as JSON. Text cannot show its type, so `year=2020` passes rows with the
    number 2020 and rows with the text "2020"; quotes ask for the text alone: year='"2020"'. They are needed for text
    that begins with a sign, because year==2020 is a slip more often than it is meant.

    A number is decimal, as in 2020, -0.5, +.5, 007 and 1e6. Other spellings are text: 0x1F, 1_000, nan, and 1e999,
    which float64 cannot hold. Behind <, <=, > and >= they need quotes, because numbers and text have other orders.

    Raises:
        InputError: a text is none of these; names it.
    """
    return {"$and": [_parse_word(text) for text in conditions]} if conditions else {}


def _parse_word(text: str) -> Where:
    if text.lstrip().startswith(("{", "[")):
        try:
            parsed = json.loads(text, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            raise InputError(f"where: must be a filter in JSON, got {text!r}: {error}") from error
        Filter.parse(parsed)
        return dict(parsed)
    found = re.fullmatch(r"(!?)([^=<>!~]+)(?:(>=|<=|!=|=|>|<|~)(.*))?", text, re.DOTALL)
    if found is None or (found[1] and found[3]):
        raise InputError(f"where: must be KEY=VALUE, KEY!=VALUE, KEY<VALUE, KEY>VALUE, KEY~VALUE or KEY, got {text!r}")
    negated, key, sign, value = found.groups()
    if sign is None:
        return {key: {"$exists": not negated}}
    if value.startswith(("=", "<", ">", "~")):
        raise InputError(
            f"where: after {sign} comes a value, got another sign in {text!r}; quote text that begins so: "
            f"{_quoted(key, sign, value)}"
        )
    meanings = _meanings(value)
    if _SIGNS[sign] in _ORDER:
        if not value:
            raise InputError(f"where: after {sign} comes a number or text, got {text!r}")
        if meanings == [value] and _LIKE_A_NUMBER.fullmatch(value.strip()):
            got = shortened(repr(value), 80)
            raise InputError(
                f"where: after {sign} comes a number, as 2020, -0.5 or 1e6, or text, and {got} only reads like one; "
                f"quote text that reads so: {_quoted(key, sign, value)}"
            )
        meanings = [meant for meant in meanings if meant is not None and not isinstance(meant, bool)]
    either = [{key: {_SIGNS[sign]: meant}} for meant in meanings]
    return {"$and": either} if sign == "!=" else {"$or": either}


def _quoted(key: str, sign: str, value: str) -> str:
    """A condition on text that is meant as it stands, for a shell."""
    return shortened(quoted(f"{key}{sign}{json.dumps(value, ensure_ascii=False)}"))


def _meanings(text: str) -> list[Json]:
    """What a text of unknown type can mean: itself, and the number, boolean, null or quoted text that it spells."""
    spelled = text.strip()
    if spelled.startswith('"'):
        try:
            return [json.loads(spelled)]
        except ValueError:
            return [text]
    value = _WORDS[spelled] if spelled in _WORDS else _number(spelled)
    return [text] if value is None and spelled != "null" else [value, text]


def _number(text: str) -> int | float | None:
    """The decimal number that a text spells; None for another text, and for what float64 cannot hold."""
    if _DECIMAL.fullmatch(text) is None:
        return None
    nearest = float(text)
    if not math.isfinite(nearest):
        return None
    return nearest if any(letter in text for letter in ".eE") else int(text)
