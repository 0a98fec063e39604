"""One reader of CSV and JSON lines: captions and metadata report the same fault in the same words."""

from __future__ import annotations

from pathlib import Path

import pytest

from chan_rt.runtime.errors import InputError
from chan_rt.runtime.indexing.metadata_file import read_metadata
from chan_rt.runtime.own_data.tables import read_table

FAULTS = {
    "cells.csv": b"path,caption\na.jpg,A dog, running\n",
    "columns.csv": b"path,caption,caption\na.jpg,A dog,A cat\n",
    "inside.csv": b'path,caption\na.jpg,A dog\nb.jpg,"A "big" cat"\n',
    "open.csv": b'path,caption\na.jpg,"A\ndog"\nb.jpg,"A cat\n',
    "latin.csv": b"path,caption\na.jpg,caf\xe9\n",
    "latin.jsonl": b'{"path": "caf\xe9"}\n',
    "broken.jsonl": b'{"path": "a.jpg", "caption": "A dog."}\n\n{"path"\n',
    "list.jsonl": b"[1]\n",
    "twice.jsonl": b'{"path": "a.jpg", "caption": "A dog", "caption": "A cat"}\n',
    "deep.jsonl": b"[" * 100_000 + b"\n",
    "missing.csv": None,
    "missing.jsonl": None,
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_has_one_message(tmp_path: Path, name: str) -> None:
    content = FAULTS[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    messages = []
    for read in (lambda file: list(read_table(file)), read_metadata):
        with pytest.raises(InputError) as caught:
            read(tmp_path / name)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith(str(tmp_path / name))


def test_a_row_is_named_by_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('path,caption\na.jpg,"A\ndog"\nb.jpg,"A\ncat",3\n')
    with pytest.raises(InputError, match="line 4: must have 2 cells, got 3"):
        list(read_table(tmp_path / "t.csv"))


def test_metadata_have_the_names_of_their_columns_without_blanks(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text('path, year\na.jpg,2020\n\n"b.jpg",\n')
    assert read_metadata(tmp_path / "m.csv") == {"a.jpg": {"year": 2020}, "b.jpg": {}}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_metadata_may_be_separated_as_captions_are(tmp_path: Path, delimiter: str) -> None:
    """A CSV of a spreadsheet has semicolons where the comma is the decimal sign; one column was read of it before."""
    text = f'\ufeffpath{delimiter}year{delimiter}note\na.jpg{delimiter}2020{delimiter}"one{delimiter} two"\n'
    (tmp_path / "m.csv").write_text(text, encoding="utf-8")
    assert read_metadata(tmp_path / "m.csv") == {"a.jpg": {"year": 2020, "note": f"one{delimiter} two"}}


def test_one_column_is_separated_by_nothing(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path\na.jpg\n", encoding="utf-8")
    assert read_metadata(tmp_path / "m.csv") == {"a.jpg": {}}


def test_the_columns_of_a_header_without_known_names_are_listed(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("wo|was\na.jpg|A dog\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"there must be a column of the path .* got 'wo', 'was': give --path-column"):
        list(read_table(tmp_path / "t.csv"))
