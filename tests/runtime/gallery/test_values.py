"""Ids and metadata enter a gallery by one door: converted without loss, or refused by name."""

from __future__ import annotations

import enum
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chan_rt.runtime.errors import InputError
from chan_rt.runtime.gallery import Gallery, GalleryWriter
from chan_rt.runtime.gallery.store.rows import Relabel
from chan_rt.runtime.gallery.values import MAX_DEPTH, MAX_VALUES, checked_ids, checked_metadata, json_value, same


class Color(enum.StrEnum):
    RED = "red"


class Loud(str):
    def __str__(self) -> str:
        return "LOUD"


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
LOSSLESS = [
    ("r1", "r1"),
    (np.str_("r2"), "r2"),
    (Color.RED, "red"),
    (Loud("quiet"), "quiet"),
    (3, "3"),
    (np.int64(-4), "-4"),
    (np.uint8(5), "5"),
    ("caf\u00e9", "caf\u00e9"),
    ("nul \0 inside", "nul \0 inside"),
    ("", ""),
]
REFUSED = [
    1.5,
    float("nan"),
    np.float64(2.0),
    True,
    np.True_,
    None,
    Path("a.jpg"),
    b"r1",
    ("a",),
    "caf\udce9",
    object(),
]


@pytest.mark.parametrize(("given", "kept"), LOSSLESS)
def test_an_id_that_is_converted_lives_like_any_other(
    tmp_path: Path, make_embeddings, make_settings, given: Any, kept: str
) -> None:
    with GalleryWriter.create(tmp_path / "g", make_settings()) as writer:
        writer.add([given, "another"], make_embeddings(1, 2), [{"n": 0}, {"n": 1}])
        writer.add([given], make_embeddings(2, 1), [{"n": 2}], overwrite=True)
        assert writer.ids([given]) == {kept}
        writer.compact()
    with Gallery.open(tmp_path / "g") as gallery:
        assert [row.id for row in gallery.rows()] == ["another", kept]
        assert gallery.verify() == []
        query = make_embeddings(9, 1)
        (result,) = gallery.search(query, ids=[given], where={"n": 2})
        assert [hit.id for hit in result.hits] == [kept]
        assert type(result.hits[0].id) is str
    with GalleryWriter.open(tmp_path / "g") as writer:
        writer.delete([given])
        assert writer.ids([given]) == set()


@pytest.mark.parametrize("wrong", REFUSED, ids=lambda value: type(value).__name__)
def test_an_id_without_a_lossless_form_is_refused_by_name(
    tmp_path: Path, make_embeddings, make_settings, wrong: Any
) -> None:
    query = make_embeddings(9, 1)
    with GalleryWriter.create(tmp_path / "g", make_settings()) as writer:
        writer.add(["a"], make_embeddings(1, 1))
        with pytest.raises(InputError, match=r"ids\[1\]: must be text"):
            writer.add(["b", wrong], make_embeddings(2, 2))
        with pytest.raises(InputError, match=r"ids\[0\]: must be text"):
            writer.delete([wrong])
    with Gallery.open(tmp_path / "g") as gallery:
        assert [row.id for row in gallery.rows()] == ["a"]
        with pytest.raises(InputError, match=r"ids\[1\]: must be text"):
            gallery.search(query, ids=["a", wrong])


@pytest.mark.parametrize("ids", ["12", b"12", bytearray(b"12"), memoryview(b"12"), Loud("12")])
def test_one_text_is_not_read_letter_by_letter(ids: Any) -> None:
    with pytest.raises(InputError, match="must be a sequence of ids, got the single value"):
        checked_ids(ids)
    with pytest.raises(InputError, match="must be a sequence of ids, got 12"):
        checked_ids(12)  # type: ignore[arg-type]


def test_an_integer_that_python_would_not_write_out_is_refused() -> None:
    assert checked_ids([2**2048 - 1]) == [str(2**2048 - 1)]
    with pytest.raises(InputError, match=r"ids\[0\]: must be an integer of at most 2048 bits, got 16610 bits"):
        checked_ids([10**5000])


def test_ids_of_arrays_and_integers_that_meet(tmp_path: Path, make_embeddings, make_settings) -> None:
    assert checked_ids(np.array(["1", "22"])) == ["1", "22"]
    assert checked_ids(np.arange(3)) == ["0", "1", "2"]
    assert checked_ids(str(i) for i in range(2)) == ["0", "1"]
    with (
        GalleryWriter.create(tmp_path / "g", make_settings()) as writer,
        pytest.raises(InputError, match="must be unique, got 1"),
    ):
        writer.add([1, "1"], make_embeddings(1, 2))


@given(st.lists(st.dictionaries(TEXT, JSON, max_size=4), max_size=3))
def test_json_passes_unchanged(rows: list[dict[str, Any]]) -> None:
    assert checked_metadata(rows) == rows
    assert all(same(new, old) for new, old in zip(checked_metadata(rows), rows, strict=True))


def test_numpy_and_tuples_become_json() -> None:
    value = {"a": np.int64(3), "b": np.float32(0.5), "c": np.bool_(True), "d": np.arange(2), "e": (1, np.str_("x"))}
    (row,) = checked_metadata([value | {"f": np.array(7), "g": Color.RED}])
    assert row == {"a": 3, "b": 0.5, "c": True, "d": [0, 1], "e": [1, "x"], "f": 7, "g": "red"}
    assert [type(item) for item in row.values()] == [int, float, bool, list, list, int, str]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": float("nan")}, r"metadata\[1\]\['a'\]: must be finite, got nan"),
        ({"a": [1, math.inf]}, r"metadata\[1\]\['a'\]\[1\]: must be finite, got inf"),
        ({"a": np.float32("nan")}, "must be finite"),
        ({"a": Path("x")}, r"must be a JSON value, got .*Path\('x'\)"),
        (
            {"a": np.datetime64("2020-01-01", "ns")},
            r"\['a'\]: must be a JSON value, got .*; make it text: numpy.datetime",
        ),
        ({"a": np.array(["NaT"], "M8[ns]")}, r"must be a JSON value, got .*\(datetime64\[ns\]\); make it text"),
        ({"a": [np.timedelta64(3, "ns")]}, r"'a'\]\[0\]: must be a JSON value, .*; make it a number of seconds"),
        ({"a": np.zeros(2, [("x", "i4")])}, "must be a JSON value, .*; make it an object of its fields"),
        ({"a": np.zeros(2, [("x", "i4")])[0]}, "must be a JSON value, .*; make it an object of its fields"),
        ({"a": {1, 2}}, r"must be a JSON value, got \{1, 2\}"),
        ({"a": "caf\udce9"}, "must be text that UTF-8 can encode"),
        ({"caf\udce9": 1}, "a key: must be text that UTF-8 can encode"),
        ({1: 2}, "a key must be text, got 1"),
        ({"a": {None: 2}}, r"metadata\[1\]\['a'\]: a key must be text, got None"),
        ([1, 2], r"metadata\[1\]: must be a mapping"),
        ({"a": [0] * MAX_VALUES}, "at most 100000 values"),
        ({"a": 10**5000}, r"metadata\[1\]\['a'\]: must be an integer of at most 2048 bits, got 16610 bits"),
    ],
)
def test_metadata_without_a_json_form_is_refused_by_name(row: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked_metadata([{}, row])


def test_metadata_is_one_mapping_for_each_row_and_not_too_deep() -> None:
    with pytest.raises(InputError, match="one for each row, got dict"):
        checked_metadata({"a": 1})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one for each row, got int"):
        checked_metadata(5)  # type: ignore[arg-type]
    deep: Any = []
    for _ in range(2000):
        deep = [deep]
    with pytest.raises(InputError, match=f"at most {MAX_DEPTH} deep"):
        json_value(deep, "value")


def test_embeddings_of_the_other_kind_are_refused(tmp_path: Path, make_embeddings, make_settings) -> None:
    from dataclasses import replace

    captions = replace(make_embeddings(1, 1), kind="captions")
    images = replace(make_embeddings(1, 1), kind="images")
    with GalleryWriter.create(tmp_path / "g", make_settings()) as writer:
        with pytest.raises(InputError, match="embeddings: must be of this gallery's images, got captions"):
            writer.add(["a"], captions)
        writer.add(["a"], images)
    with Gallery.open(tmp_path / "g") as gallery:
        with pytest.raises(
            InputError, match="a gallery of images is searched with captions unless same_kind is set, got"
        ):
            gallery.search(images)
        assert len(gallery.search(captions)[0].hits) == 1


@pytest.mark.parametrize("ids", [{"a", "b"}, frozenset({"a", "b"})], ids=["set", "frozenset"])
def test_ids_without_an_order_cannot_belong_to_rows(tmp_path: Path, make_embeddings, make_settings, ids: Any) -> None:
    with GalleryWriter.create(tmp_path / "g", make_settings()) as writer:
        with pytest.raises(InputError, match="ids: must have an order, got a"):
            writer.add(ids, make_embeddings(1, 2))
        writer.add({"a": 1, "b": 2}.keys(), make_embeddings(1, 2))
        assert writer.ids(ids) == {"a", "b"}


@pytest.mark.parametrize(
    ("roots", "message"),
    [
        ({"photos": 5}, r"roots\['photos'\]: must be text, got 5"),
        ({"photos": Path("/photos")}, "must be a JSON value"),
        ({5: "/photos"}, "a key must be text, got 5"),
        ({"photos": "caf\udce9"}, "must be text that UTF-8 can encode"),
        ("photos", "roots: must be a mapping"),
    ],
)
def test_roots_that_could_not_be_read_again_are_refused(gallery_path: Path, roots: Any, message: str) -> None:
    with GalleryWriter.open(gallery_path) as writer:
        with pytest.raises(InputError, match=message):
            writer.relabel([], roots)
        writer.relabel([], {np.str_("photos"): np.str_("/photos")})
        assert writer.roots == {"photos": "/photos"}
    with Gallery.open(gallery_path) as gallery:
        assert len(gallery) == 30


def test_one_row_is_relabeled_once(gallery_path: Path) -> None:
    with GalleryWriter.open(gallery_path) as writer:
        with pytest.raises(InputError, match="changes: must be unique, got 5"):
            writer.relabel([Relabel("5", "x", {}), Relabel("5", "y", {})])
        assert writer.ids(["5", "x", "y"]) == {"5"}
        writer.relabel([Relabel("5", "6", {"n": 5}), Relabel("6", "5", {"n": 6})])
    with Gallery.open(gallery_path) as gallery:
        assert {row.id: row.metadata["n"] for row in gallery.rows() if row.id in "56"} == {"6": 5, "5": 6}


@pytest.mark.parametrize("k", [0, -1, 2.5, float("nan"), "3", None])
def test_k_that_is_no_count_is_refused(gallery_path: Path, make_embeddings, k: Any) -> None:
    with Gallery.open(gallery_path) as gallery, pytest.raises(InputError, match="k must be"):
        gallery.search(make_embeddings(9, 1), k)
