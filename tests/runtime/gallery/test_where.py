"""Filters: what each condition means, what is refused, and that a search finds exactly the rows that pass."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chan_rt.runtime.errors import InputError
from chan_rt.runtime.gallery import Gallery, GalleryWriter
from chan_rt.runtime.gallery.where import _SIGNS, Filter, parse_words


def row(n: int) -> dict[str, Any]:
    return {
        "n": n, "f": n / 2, "even": n % 2 == 0, "s": f"{n:03d}", "none": None, "tags": ["a", f"t{n}"],
        "a.b": n, "a\\b": n, 'a"b': n, "é": n, "$odd": n, "big": 2**60 + n, "box": {"x": n},
        **({"rare": n} if n == 3 else {}),
    }  # fmt: skip


ROWS = [row(n) for n in range(6)]
CASES: list[tuple[dict[str, Any], list[int]]] = [
    ({"n": 3}, [3]),
    ({"n": 3.0}, [3]),
    ({"n": np.int64(3)}, [3]),
    ({"f": np.float32(1.5)}, [3]),
    ({"even": np.bool_(True)}, [0, 2, 4]),
    ({"even": True}, [0, 2, 4]),
    ({"even": 1}, []),
    ({"n": True}, []),
    ({"n": "3"}, []),
    ({"s": "003"}, [3]),
    ({"none": None}, [0, 1, 2, 3, 4, 5]),
    ({"rare": None}, []),
    ({"tags": ["a", "t2"]}, [2]),
    ({"tags": ("a", "t2")}, [2]),
    ({"tags": np.array(["a", "t2"])}, [2]),
    ({"box": {"x": 4}}, [4]),
    ({"n": 2**70}, []),
    ({"big": 2**60 + 3}, [3]),
    ({"a.b": 3}, [3]),
    ({"a\\b": 3}, [3]),
    ({'a"b': 3}, [3]),
    ({"é": 3}, [3]),
    ({}, [0, 1, 2, 3, 4, 5]),
    ({"n": {"$in": [1, "2", 3.0]}}, [1, 3]),
    ({"n": {"$in": np.array([1, 5])}}, [1, 5]),
    ({"n": {"$gt": 1, "$lte": 3}}, [2, 3]),
    ({"n": {"$gte": np.float64(4.5)}}, [5]),
    ({"s": {"$lt": "002"}}, [0, 1]),
    ({"s": {"$lt": 2}}, []),
    ({"even": {"$lt": 2}}, []),
    ({"n": {"$ne": 3}}, [0, 1, 2, 4, 5]),
    ({"rare": {"$ne": 7}}, [3]),
    ({"n": {"$eq": 3}}, [3]),
    ({"n": {"$eq": {"gte": 3}}}, []),
    ({"tags": {"$contains": "t4"}}, [4]),
    ({"s": {"$contains": "02"}}, [2]),
    ({"n": {"$contains": 2}}, []),
    ({"rare": {"$exists": True}}, [3]),
    ({"rare": {"$exists": False}}, [0, 1, 2, 4, 5]),
    ({"nowhere": {"$exists": False}}, [0, 1, 2, 3, 4, 5]),
    ({"$or": [{"n": 1}, {"s": "004"}]}, [1, 4]),
    ({"$and": [{"n": {"$gt": 1}}, {"even": True}]}, [2, 4]),
    ({"$not": {"even": True}, "n": {"$lt": 4}}, [1, 3]),
    ({"$not": {"$or": [{"n": 1}, {"n": 2}]}}, [0, 3, 4, 5]),
]


@pytest.mark.parametrize(("where", "passing"), CASES, ids=repr)
def test_rows_that_pass(where: dict[str, Any], passing: list[int]) -> None:
    condition = Filter.parse(where)
    assert [n for n, metadata in enumerate(ROWS) if condition.matches(metadata)] == passing


def test_a_search_finds_exactly_the_rows_that_pass(tmp_path: Path, make_embeddings, make_settings) -> None:
    with GalleryWriter.create(tmp_path / "g", make_settings()) as writer:
        writer.add([str(n) for n in range(3)], make_embeddings(1, 3), ROWS[:3])
        writer.add([str(n) for n in range(3, 6)], make_embeddings(2, 3), ROWS[3:])
    query = make_embeddings(9, 1)
    with Gallery.open(tmp_path / "g") as gallery:
        for where, passing in CASES + CASES:  # twice: the second time from the masks that are kept
            (result,) = gallery.search(query, 10, where=where)
            assert sorted(int(hit.id) for hit in result.hits) == passing
            assert result.rows == len(passing)
            assert (result.reason == "no row passes the filter") == (not passing)
        (both,) = gallery.search(query, 10, ids=["1", "2"], where={"even": True})
        assert [hit.id for hit in both.hits] == ["2"]


@pytest.mark.parametrize(
    ("where", "passing"),
    [
        ({"n": {"$exists": True}}, []),
        ({"n": {"$exists": False}}, [0, 1, 2, 3, 4, 5]),
        ({"$not": {"n": {"$exists": True}}, "rare": 3}, [3]),
        ({"s": "002"}, [2]),
    ],
)
def test_a_hidden_key_is_as_if_no_row_had_it(
    tmp_path: Path, make_embeddings, make_settings, where: dict[str, Any], passing: list[int]
) -> None:
    with GalleryWriter.create(tmp_path / "g", make_settings()) as writer:
        writer.add([str(n) for n in range(6)], make_embeddings(1, 6), ROWS)
    with Gallery.open(tmp_path / "g") as gallery:

        def found(condition: Filter) -> list[int]:
            (result,) = gallery.search(make_embeddings(9, 1), 10, where=condition)
            return sorted(int(hit.id) for hit in result.hits)

        seen = found(Filter.parse(where))  # whose masks the next search must not take
        assert found(Filter.parse(where, hidden=("n",))) == passing
        assert found(Filter.parse(where)) == seen
        for value in (3, {"$ne": 3}, {"$in": [3]}, {"$gt": 2}, {"$contains": "x"}):
            with pytest.raises(InputError, match=r"no row has the key 'n'; the keys are '[^n]") as caught:
                gallery.search(make_embeddings(9, 1), 10, where=Filter.parse({"n": value}, hidden=("n",)))
            assert "'n'," not in str(caught.value).partition(";")[2]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({3: 3}, "where: a key must be text, got 3"),
        ({"n": float("nan")}, r"where\['n'\].\$eq: must be finite, got nan"),
        ({"s": "caf\udce9"}, "must be text that UTF-8 can encode"),
        ({"s\udce9": 1}, "must be text that UTF-8 can encode"),
        ({"n": Path("x")}, "must be a JSON value"),
        ({"n": {"gte": 1}}, r"where\['n'\]: must write \$gte for the condition, and \$eq before an object"),
        ({"n": {"$near": 1}}, r"a condition must be one of \$eq, .* got '\$near'"),
        ({"n": {"$gt": 1, "lt": 2}}, "a condition must be one of .* got 'lt'"),
        ({"$xor": []}, r"must use a metadata key or one of \$and, \$or, \$not, got '\$xor'"),
        ({"$or": []}, "must be a list of filters, got"),
        ({"$or": {"n": 1}}, "must be a list of filters"),
        ({"$or": [3]}, r"where.\$or\[0\]: must be a mapping, got 3"),
        ({"n": {"$in": 3}}, "must be a list, got 3"),
        ({"n": {"$gt": None}}, "must be a number or text, got None"),
        ({"n": {"$exists": 1}}, "must be true or false, got 1"),
        ({"n": 10**5000}, "must be an integer of at most 2048 bits"),
        ("n=3", "where: must be a mapping, got 'n=3'"),
        ([("n", 3)], "where: must be a mapping"),
    ],
)
def test_what_is_no_filter_is_refused(where: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Filter.parse(where)


class Condition(str, Enum):  # noqa: UP042
    """Text that prints as its name."""

    GREATER = "$gt"


def test_a_condition_may_be_text_of_any_kind() -> None:
    for name in (Condition.GREATER, np.str_("$gt")):
        condition = Filter.parse({"n": {name: 2}})
        assert [n for n in range(5) if condition.matches({"n": n})] == [3, 4]


def test_a_deep_filter_is_refused() -> None:
    where: dict[str, Any] = {"n": 1}
    for _ in range(2000):
        where = {"$not": where}
    with pytest.raises(InputError, match="nested at most"):
        Filter.parse(where)


def test_a_key_that_no_row_has_is_named(tmp_path: Path, make_embeddings, make_settings) -> None:
    query = make_embeddings(9, 1)
    with GalleryWriter.create(tmp_path / "g", make_settings()) as writer:
        with Gallery.open(tmp_path / "g") as gallery:
            assert gallery.search(query, where={"year": 1})[0].reason == "the gallery is empty"
        writer.add(["a"], make_embeddings(1, 1), [{"year": 2020}])
    with Gallery.open(tmp_path / "g") as gallery:
        with pytest.raises(InputError, match="no row has the key 'yaer'; similar keys are 'year'"):
            gallery.search(query, where={"yaer": 2020})
        with pytest.raises(InputError, match="no row has the key 'album'; the keys are 'year'"):
            gallery.search(query, where={"album": 2020})
        assert len(gallery.search(query, where={"$or": [{"year": 2020}, {"yaer": {"$exists": True}}]})[0].hits) == 1


VALUES = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, "", "a", "1"])


@given(st.dictionaries(st.sampled_from("xyz"), VALUES), st.sampled_from("xyz"), VALUES)
def test_conditions_complete_each_other(metadata: dict[str, Any], key: str, value: Any) -> None:
    def passes(where: dict[str, Any]) -> bool:
        return Filter.parse(where).matches(metadata)

    assert passes({key: value}) == passes({key: {"$in": [value]}}) == passes({key: {"$eq": value}})
    assert passes({"$not": {key: value}}) != passes({key: value})
    assert passes({key: {"$exists": True}}) == (passes({key: value}) or passes({key: {"$ne": value}}))
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        either = passes({"$or": [{key: {"$gt": value}}, {key: value}]})
        assert passes({key: {"$gte": value}}) == either
        assert passes({key: {"$lte": value, "$gte": value}}) == passes({key: value})


@pytest.mark.parametrize(
    ("words", "passing"),
    [
        ([], [0, 1, 2, 3, 4, 5]),
        (["n=3"], [3]),
        (["s=003"], [3]),
        (["image_id=391898"], [3]),
        (["even=true"], [0, 2, 4]),
        (["none=null"], [0, 1, 2, 3, 4, 5]),
        (["n>=3", "n<5"], [3, 4]),
        (["s>true"], []),
        (["s<null"], [0, 1, 2, 3, 4, 5]),
        (["n!=3"], [0, 1, 2, 4, 5]),
        (["image_id!=391898"], [0, 1, 2, 4, 5]),
        (["tags~t2"], [2]),
        (["rare"], [3]),
        (["!rare"], [0, 1, 2, 4, 5]),
        (['n="3"'], []),
        (['s="003"'], [3]),
        (["note=a=b"], [0, 1, 2, 3, 4, 5]),
        (['note="a=b"'], [0, 1, 2, 3, 4, 5]),
        (['note<"=3"'], []),
        (["n="], []),
        (["n=03"], [3]),
        (["n<=+1."], [0, 1]),
        (["n>4.5"], [5]),
        (["n<.5"], [0]),
        (["n=1e999"], []),
        (["n!=1e999"], [0, 1, 2, 3, 4, 5]),
        (["word=1_000"], [0, 1, 2, 3, 4, 5]),
        (["word~1_0"], [0, 1, 2, 3, 4, 5]),
        (['word<="1_000"'], [0, 1, 2, 3, 4, 5]),
        (["word>=1.0.0"], [0, 1, 2, 3, 4, 5]),
        (['{"$or": [{"n": 1}, {"n": 4}]}', "n>1"], [4]),
    ],
    ids=repr,
)
def test_words_of_a_command_line(words: list[str], passing: list[int]) -> None:
    rows = [row | {"image_id": str(391895 + n), "note": "a=b", "word": "1_000"} for n, row in enumerate(ROWS)]
    condition = Filter.parse(parse_words(words))
    assert [n for n, metadata in enumerate(rows) if condition.matches(metadata)] == passing


@pytest.mark.parametrize(
    "word",
    ["=3", "", "!n=3", "{bad", '{"n": {"$near": 1}}', ">3", "{" * 100_000, "[]", '["n"]', '{"n": 1, "n": {"$gt": 2}}'],
)
def test_words_that_are_no_condition(word: str) -> None:
    with pytest.raises(InputError, match="where"):
        parse_words([word])


@pytest.mark.parametrize(
    ("word", "quoted"),
    [("n==3", 'n="=3"'), ("n=>3", 'n=">3"'), ("n<>3", 'n<">3"'), ("s=~x", 's="~x"'), ("n!==it's", 'n!="=it\'s"')],
)
def test_another_sign_must_be_quoted(word: str, quoted: str) -> None:
    """n==3 would ask for the text "=3". What the message says is taken, as the shell hands it on."""
    with pytest.raises(InputError, match="another sign") as caught:
        parse_words([word])
    assert shlex.split(str(caught.value).partition("begins so: ")[2]) == [quoted]
    parse_words([quoted])


LIKE_NUMBERS = [
    "1e999", "-1e400", "1" * 400, "9" * 5000, "inf", "-Infinity", "NaN", "0x1F", "0b1", "1_000", "1,000", "1,5",
    "1'000.5", "\uff15", " 1e999 ",
]  # fmt: skip


@pytest.mark.parametrize("sign", ["<", "<=", ">", ">="])
@pytest.mark.parametrize("value", LIKE_NUMBERS, ids=lambda value: value[:8])
def test_what_only_reads_like_a_number_has_no_order_unless_it_is_quoted(value: str, sign: str) -> None:
    with pytest.raises(InputError, match="only reads like one; quote text that reads so: ") as caught:
        parse_words([f"n{sign}{value}"])
    assert len(str(caught.value)) < 1500
    if len(value) < 20:
        (quoted,) = shlex.split(str(caught.value).partition("reads so: ")[2])
        assert parse_words([quoted]) == {"$and": [{"$or": [{"n": {_SIGNS[sign]: value}}]}]}
    assert parse_words([f"n={value}"]) == {"$and": [{"$or": [{"n": {"$eq": value}}]}]}


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**300), 10**300))
def test_a_number_means_itself_however_many_zeros_it_has(number: float) -> None:
    text = repr(number)
    for spelled in (text, text.replace("-", "-00", 1) if text[0] == "-" else f"+00{text}"):
        assert parse_words([f"n<{spelled}"]) == {"$and": [{"$or": [{"n": {"$lt": number}}, {"n": {"$lt": spelled}}]}]}


@pytest.mark.parametrize("word", ["n>", "n<=", "n>="])
def test_nothing_is_larger_than_no_value(word: str) -> None:
    with pytest.raises(InputError, match=r"where: after .* comes a number or text, got 'n"):
        parse_words([word])
