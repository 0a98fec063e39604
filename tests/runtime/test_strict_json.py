"""Every field is held against its annotation, and limits are checked before anything is read or parsed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chan_rt.runtime import strict_json
from chan_rt.runtime.errors import InputError
from chan_rt.runtime.strict_json import MAX_DEPTH, decode, parse_json, read_json


class Extra(TypedDict, total=False):
    sizes: list[int]


@dataclass(frozen=True)
class Inner:
    pair: tuple[float, float]
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", "b"]
    flag: bool
    table: Mapping[str, Inner]
    extra: Extra
    maybe: Inner | None = None
    free: Any = None


GOOD: dict[str, Any] = {
    "name": "x",
    "kind": "a",
    "flag": True,
    "table": {"t": {"pair": [1, 2.5], "shape": ["B", 3]}},
    "extra": {"sizes": [1, 2]},
}


def test_what_fits_becomes_the_dataclass() -> None:
    inner = Inner((1.0, 2.5), ("B", 3))
    assert decode(Outer, GOOD, "it") == Outer("x", "a", True, {"t": inner}, {"sizes": [1, 2]})
    assert decode(Outer, {**GOOD, "maybe": {"pair": [0, 0], "shape": []}}, "it").maybe == Inner((0.0, 0.0), ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 1}, "it.name must be text, got 1"),
        ({"name": "a\0b"}, r"it.name must not contain a NUL character, got 'a\\x00b'"),
        ({"kind": "c"}, "it.kind must be one of a, b, got 'c'"),
        ({"kind": ["a"]}, "it.kind must be one of a, b"),
        ({"flag": 1}, "it.flag must be true or false, got 1"),
        ({"table": []}, r"it.table must be an object, got \[\]"),
        ({"table": {"t": {"pair": [1], "shape": []}}}, "it.table.t.pair must have 2 items, got 1"),
        ({"table": {"t": {"pair": [1, "2"], "shape": []}}}, r"it.table.t.pair\[1\] must be a number, got '2'"),
        ({"table": {"t": {"pair": [1, True], "shape": []}}}, r"it.table.t.pair\[1\] must be a number, got true"),
        ({"table": {"t": {"pair": [1, 10**400], "shape": []}}}, r"it.table.t.pair\[1\] must be finite, got 1000"),
        ({"table": {"t": {"pair": [1, 1], "shape": [1.5]}}}, r"it.table.t.shape\[0\] must be an integer.*, got 1.5"),
        ({"table": {"t": {"pair": [1, 1], "shape": [2**63]}}}, r"shape\[0\] must be an integer of at most 63 bits"),
        ({"table": {"\x1b[31m": 1}}, r"it.table.'\\x1b\[31m' must be an object, got 1"),
        ({"extra": {"size": 1}}, "it.extra must not have the field size"),
        ({"extra": {"sizes": [True]}}, r"it.extra.sizes\[0\] must be an integer of at most 63 bits, got true"),
        ({"surprise": 1}, "it must not have the field surprise"),
        ({"name": "x" * 10**6 + "\0"}, r"got 'x{56}\.\.\.$"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode(Outer, {**GOOD, **change}, "it")


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InputError, match="it must have the fields extra"):
        decode(Outer, {key: value for key, value in GOOD.items() if key != "extra"}, "it")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(GOOD)), JSON)
def test_no_value_of_any_type_crashes(field: str, value: object) -> None:
    try:
        found = decode(Outer, {**GOOD, field: value}, "it")
    except InputError:
        return
    assert type(getattr(found, field)) is type(GOOD[field])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * (MAX_DEPTH + 1), "nested at most 32 levels"),
        ('{"a":' * 10**6, "nested at most 32 levels"),
        ("[NaN]", "NaN is no JSON number"),
        ("[-Infinity]", "-Infinity is no JSON number"),
        ('["\\ud800"]', "valid JSON"),
        ('{"\\udfff": 1}', "valid JSON"),
        ("[" + "1" * 5000 + "]", "valid JSON"),
        ("", "valid JSON"),
        ('["\n"]', "valid JSON"),
        ('[{"a": 1, "b": 2, "b": 2}]', "the key 'b' stands twice in one object"),
    ],
)
def test_text_beyond_the_limits_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_json(text)


@given(JSON)
def test_what_json_writes_is_read(value: object) -> None:
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        return
    assert parse_json(text) == value


def test_brackets_inside_text_are_no_nesting() -> None:
    assert parse_json(json.dumps(["[" * 99 + '"' + "{" * 99])) == ["[" * 99 + '"' + "{" * 99]


def test_files_are_measured_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_json, "MAX_BYTES", 10)
    large, pipe, latin = tmp_path / "large", tmp_path / "pipe", tmp_path / "latin"
    large.write_text("[1, 2, 3, 4]")
    os.mkfifo(pipe)
    latin.write_bytes(b'["\xe9"]')
    for path, message in ((large, "at most 10 bytes, got 12"), (pipe, "regular file"), (latin, "must be UTF-8")):
        with pytest.raises(InputError, match=message):
            read_json(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none")
