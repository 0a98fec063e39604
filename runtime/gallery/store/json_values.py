"""Values of the JSON in a gallery's files, checked before they are used: types, sizes and counts, with limits first."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any


def plain_json(text: bytes) -> object:
    """What JSON without NaN and infinite numbers says; ValueError or RecursionError where it is none."""
    return json.loads(text, parse_constant=_no_constant)


def json_object(raw: object, place: str, *keys: str) -> Mapping[str, Any]:
    """An object with these keys; ValueError, which names the place, where it is none."""
    if not isinstance(raw, dict) or (keys and raw.keys() != set(keys)):
        raise ValueError(f"{place} must be an object" + (f" with {', '.join(keys)}" if keys else ""))
    return raw


def json_list(raw: object, place: str, longest: int) -> list[Any]:
    """A list of at most `longest` items; ValueError, which names the place, where it is none."""
    if not isinstance(raw, list) or len(raw) > longest:
        raise ValueError(f"{place} must be a list of at most {longest}")
    return raw


def json_integer(raw: object, place: str, low: int, high: int) -> int:
    """An integer from `low` to `high`; ValueError, which names the place, where it is none."""
    if type(raw) is not int or not low <= raw <= high:
        raise ValueError(f"{place} must be an integer from {low} to {high}")
    return raw


def json_share(raw: object, place: str) -> float:
    """A number from 0 to 1; ValueError, which names the place, where it is none."""
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not 0 <= raw <= 1:
        raise ValueError(f"{place} must be a number from 0 to 1")
    return float(raw)


def json_bytes(raw: object, place: str, length: int) -> bytes:
    """So many bytes in base64; ValueError, which names the place, where it is none."""
    data = base64.b64decode(raw, validate=True) if isinstance(raw, str) else b""
    if len(data) != length:
        raise ValueError(f"{place} must be {length} bytes in base64, got {len(data)}")
    return data


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")
