"""Tables of paths and captions: what people's files look like, and what is wrong with them by line."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chan_rt.runtime.errors import InputError
from chan_rt.runtime.own_data.tables import read_table


def rows(file: Path, **columns: str) -> list[tuple[str, tuple[str, ...], str | None]]:
    return [(entry.names[-1], entry.captions, entry.split) for entry in read_table(file, **columns)]


def written(folder: Path, content: str | bytes, name: str = "table.csv") -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


EXPECTED = [("a.jpg", ("A dog, running.",), None), ("b.jpg", ('A "big" cat',), None)]


@pytest.mark.parametrize(
    "content",
    [
        'path,caption\na.jpg,"A dog, running."\nb.jpg,"A ""big"" cat"\n',
        '\ufeffpath,caption\r\na.jpg,"A dog, running."\r\n\r\nb.jpg,"A ""big"" cat"',
        'Image; Caption\na.jpg ;A dog, running.\nb.jpg;"A ""big"" cat"\n',
        'id,text,file_name\n1,"A dog, running.",a.jpg\n2,"A ""big"" cat",b.jpg\n',
        'image_name| comment_number| comment\na.jpg|0|A dog, running.\nb.jpg|1|"A ""big"" cat"\n',
    ],
    ids=["plain", "byte order mark and CRLF", "semicolons", "other columns", "Flickr30K"],
)
def test_tables_as_people_have_them(tmp_path: Path, content: str) -> None:
    assert rows(written(tmp_path, content)) == EXPECTED


def test_quotation_marks_are_letters_in_a_tsv(tmp_path: Path) -> None:
    file = written(tmp_path, 'path\tcaption\na.jpg\tA dog, running.\nb.jpg\tA "big" cat\nc.jpg\t"Stop"\n', "t.tsv")
    assert rows(file) == [*EXPECTED, ("c.jpg", ('"Stop"',), None)]


def test_json_lines(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        '\ufeff{"image": "a.jpg", "captions": ["A dog.", "One\\nline."], "split": "val"}\n\n'
        '{"image": "b.jpg", "text": "A cat.", "split": null}\n',
        "t.jsonl",
    )
    assert rows(file) == [("a.jpg", ("A dog.", "One\nline."), "dev"), ("b.jpg", ("A cat.",), None)]


def test_columns_by_name_and_splits_by_every_name(tmp_path: Path) -> None:
    table = "split,image,caption,where,what\nVal,x,x,a.jpg,A dog.\nrestval,x,x,b.jpg,A cat.\n,x,x,c.jpg,A fox.\n"
    found = rows(written(tmp_path, table), path_column="Where", caption_column="what")
    assert found == [("a.jpg", ("A dog.",), "dev"), ("b.jpg", ("A cat.",), "train"), ("c.jpg", ("A fox.",), None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"line 1: there must be a header .* got an empty line or file"),
        (
            "a.jpg,A dog\n",
            r"line 1: there must be a header, got a row of the picture 'a.jpg': put a line such as path,caption",
        ),
        ("a,A dog\n", r"line 1: .* got 'a', 'A dog': give --path-column, or put the names of the columns above line 1"),
        (
            "1000092795.jpg#0\tTwo friends, who\n1000092795.jpg#1\tTwo men\n",
            r"line 1: .* of the picture '1000092795.jpg#0': put a line .* path<tab>caption .* name the file \.tsv",
        ),
        ("path,text,text\na,b,c\n", r"line 1: each column must have a name of its own"),
        ("path,caption\na.jpg,A dog, running\n", r"line 2: must have 2 cells, got 3: a cell that holds ','"),
        ('path,caption\na.jpg,A dog\nb.jpg,"A "big" cat"\n', r"line 3: must be CSV: .* must be doubled"),
        ('path,caption\na.jpg,"A dog\nb.jpg,A cat\n', r"line 2: must be CSV: unexpected end of data"),
        ('path,caption\na.jpg,"A dog\nb.jpg,A cat\nc.jpg,A fox"\n', r"line 2: a quotation mark is opened here and not"),
        ("path,caption,split\na.jpg,A dog,dev\nb.jpg,A cat,holdout\n", r"line 3: the split must be one of train"),
        (
            b"path,caption\na.jpg,caf\xe9\n",
            r"must be text in UTF-8, .*: it is not UTF-8 text",
        ),
        ("path,caption\na.jpg,A\0dog\n" + "b.jpg," + "x" * 200_000 + "\n", r"line 3: must be CSV: field larger"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rows(written(tmp_path, content))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: must be a JSON object"),
        ("[1]", "line 2: must be a JSON object, got list"),
        ('{"image": "a.jpg"}', "line 2: there must be a column of the caption"),
        ('{"image": "a.jpg", "caption": [1]}', r"line 2: the caption must be text or a list of texts, got \[1\]"),
        ('{"image": 5, "caption": "A dog."}', "line 2: the path must be text, got 5"),
        ('{"image": "a.jpg", "caption": "A dog.", "split": 1}', "line 2: the split must be text, got 1"),
    ],
)
def test_json_lines_that_are_wrong(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rows(written(tmp_path, '{"image": "a.jpg", "caption": "A dog."}\n' + line + "\n", "t.jsonl"))


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
PATHS = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8).map(lambda name: f"{name}.png")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.lists(st.tuples(PATHS, TEXT), max_size=6), st.sampled_from(",;|\t"), st.sampled_from(["\n", "\r\n"]))
def test_what_csv_can_write_is_read_back(
    tmp_path: Path, pairs: list[tuple[str, str]], delimiter: str, ending: str
) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator=ending, quoting=csv.QUOTE_ALL)
    writer.writerows([("path", "caption"), *pairs])
    found = rows(written(tmp_path, out.getvalue()))
    assert found == [(name, (caption,), None) for name, caption in pairs]


def test_a_hundred_thousand_rows_are_streamed(tmp_path: Path) -> None:
    file = written(tmp_path, "path,caption\n" + "".join(f"{n // 5}.jpg,caption {n}\n" for n in range(100_000)))
    entries = read_table(file)
    assert next(entries).where.endswith("line 2")
    assert sum(1 for _ in entries) == 99_999
