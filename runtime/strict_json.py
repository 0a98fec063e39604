"""JSON that others wrote becomes a dataclass of checked types, or one InputError that names the field.

Limits come first: a file is measured before it is read, and its nesting before it is parsed. After that, `decode` holds
each value against the annotation of the field it is meant for, so a new field is checked as soon as it has a type.
"""

from __future__ import annotations

import json
import math
import re
import stat
import sys
import types
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

from .counts import counted
from .errors import InputError

MAX_BYTES = 64 << 20  # a manifest has 10 KB; the sidecar of an engine of 10,000 layers 2 MB
MAX_DEPTH = 32  # the deepest file of ours has 7 levels
MAX_INTEGER = 2**63 - 1

T = TypeVar("T")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


def read_json(path: Path) -> Any:
    """Parse a JSON file within the limits.

    Raises:
        InputError: it is no regular file, larger than MAX_BYTES, not UTF-8, or `parse_json` refuses its text.
        OSError: it cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError("it must be a regular file")
    if status.st_size > MAX_BYTES:
        raise InputError(f"it must have at most {MAX_BYTES:,} bytes, got {status.st_size:,}")
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"it must be UTF-8 text: {error}") from error


def parse_json(text: str) -> Any:
    """Parse JSON within the limits; NaN, Infinity, a key that stands twice and text that is no Unicode are refused.

    Raises:
        InputError: the text is not JSON, is nested deeper than MAX_DEPTH, or breaks one of these rules.
    """
    depth = 0
    for token in _TOKEN.finditer(text):
        first = token[0][0]
        if first != '"':
            depth += 1 if first in "[{" else -1
            if depth > MAX_DEPTH:
                raise InputError(f"JSON must be nested at most {MAX_DEPTH} levels deep")
    try:
        found = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=unique_keys)
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InputError(f"it must be valid JSON: {error}") from error
    return found


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of `json.loads`; ValueError where a key stands twice, of which only the last value would be read."""
    found = dict(pairs)
    if len(found) < len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key!r} stands twice in one object")
    return found


def decode(kind: type[T], raw: object, where: str) -> T:
    """Check a parsed JSON value against a type and build it.

    Args:
        kind: a dataclass, a TypedDict, `int`, `float`, `str`, `bool`, `Any`, a Literal, an Optional, a Mapping with
            text keys, a `list`, or a `tuple` of fixed or any length.
        raw: the parsed value.
        where: the name of the value, for messages.

    Raises:
        InputError: names the field, the rule and the value.
        ChanError: a dataclass refused its own values.
    """
    return _decode(kind, raw, where)  # type: ignore[no-any-return]


def _decode(kind: Any, raw: object, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return raw
    if is_dataclass(kind):
        required = {item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING}
        return kind(**_decode_fields(kind, required, raw, where))  # type: ignore[operator]
    if is_typeddict(kind):
        return _decode_fields(kind, kind.__required_keys__, raw, where)
    if origin is Literal:
        if not any(raw == item and type(raw) is type(item) for item in arguments):
            raise InputError(f"{where} must be one of {', '.join(map(str, arguments))}, got {show(raw)}")
        return raw
    if origin in (Union, types.UnionType):
        return _decode_union(arguments, raw, where)
    if origin is not None and issubclass(origin, Mapping):
        mapping = _expect(raw, dict, where, "an object")
        return {key: _decode(arguments[1], value, f"{where}.{show_key(key)}") for key, value in mapping.items()}
    if origin in (list, tuple):
        return _decode_sequence(origin, arguments, raw, where)
    return _decode_scalar(kind, raw, where)


def _decode_fields(kind: Any, required: set[str] | frozenset[str], raw: object, where: str) -> dict[str, Any]:
    mapping = _expect(raw, dict, where, "an object")
    hints = get_type_hints(kind)
    if missing := sorted(required - mapping.keys()):
        raise InputError(f"{where} must have the fields {', '.join(missing)}")
    if unknown := sorted(mapping.keys() - hints.keys()):
        raise InputError(f"{where} must not have the field {show_key(unknown[0])}")
    return {name: _decode(hints[name], value, f"{where}.{name}") for name, value in mapping.items()}


def _decode_union(choices: tuple[Any, ...], raw: object, where: str) -> Any:
    if raw is None and type(None) in choices:
        return None
    choices = tuple(choice for choice in choices if choice is not type(None))
    scalars = {choice: choice for choice in choices if isinstance(choice, type)}
    return _decode(scalars.get(type(raw), choices[0]), raw, where)


def _decode_sequence(origin: Any, arguments: tuple[Any, ...], raw: object, where: str) -> Any:
    items = _expect(raw, list, where, "a list")
    if origin is tuple and arguments[-1] is not Ellipsis:
        if len(items) != len(arguments):
            raise InputError(f"{where} must have {counted(len(arguments), 'item')}, got {len(items)}")
        kinds = arguments
    else:
        kinds = (arguments[0],) * len(items)
    pairs = enumerate(zip(kinds, items, strict=True))
    return origin(_decode(kind, item, f"{where}[{row}]") for row, (kind, item) in pairs)


def _decode_scalar(kind: Any, raw: object, where: str) -> Any:
    if kind is float:
        if isinstance(raw, bool) or not isinstance(raw, int | float):
            raise InputError(f"{where} must be a number, got {show(raw)}")
        if abs(raw) > sys.float_info.max or math.isnan(raw):
            raise InputError(f"{where} must be finite, got {show(raw)}")
        return float(raw)
    if kind is int:
        if type(raw) is not int or abs(raw) > MAX_INTEGER:
            raise InputError(f"{where} must be an integer of at most 63 bits, got {show(raw)}")
        return raw
    return _expect(raw, kind, where, {str: "text", bool: "true or false"}[kind])


def _expect(raw: object, kind: type[T], where: str, words: str) -> T:
    if not isinstance(raw, kind):
        raise InputError(f"{where} must be {words}, got {show(raw)}")
    if kind is str and "\0" in str(raw):
        raise InputError(f"{where} must not contain a NUL character, got {show(raw)}")
    return raw


def show(raw: object) -> str:
    """A parsed value for a message: short, and without control characters."""
    text = ascii(raw) if isinstance(raw, str) else json.dumps(raw)
    return text if len(text) <= 60 else f"{text[:57]}..."


def show_key(key: str) -> str:
    """A field's name for a message: as it is where it is plain, otherwise escaped and short."""
    return key if re.fullmatch(r"[\w./+-]{1,60}", key) else show(key)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
