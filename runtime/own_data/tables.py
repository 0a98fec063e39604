"""Tables of pictures and captions: CSV and TSV with a header, and JSON lines. They are read line by line.

Each row has the path of a picture and one caption, and optionally a split. The columns are found by their names. The
`caption` of a JSON line may also be a list of captions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..data.text_table import DELIMITERS, csv_columns, csv_delimiter, csv_rows, json_lines, open_table, place
from ..errors import InputError
from ..pictures.load import PICTURE_SUFFIXES
from .entries import Entry, split_named

# Names of columns in lower case; the first that a header has is used.
PATH_COLUMNS = ("path", "file_name", "filename", "file", "filepath", "image_path", "image_name", "image")
CAPTION_COLUMNS = ("caption", "captions", "text", "sentence", "comment", "description", "title")
SPLIT_COLUMNS = ("split",)
_NUMBER = re.compile(r"#\d+$")  # of a caption, behind the path, in Flickr30K's results_20130124.token


def read_table(file: Path, path_column: str | None = None, caption_column: str | None = None) -> Iterator[Entry]:
    """The rows of a table, as they are read.

    Args:
        file: `.jsonl` and `.ndjson` hold one JSON object a line, everything else is CSV with a header. CSV is separated
            by commas, semicolons, tabs or `|`, as its header shows. In `.tsv` files quotation marks are letters.
        path_column, caption_column: names of these columns; None finds them by their usual names.

    Raises:
        InputError: the file cannot be read, or a row breaks its form; the message names the line.
    """
    read = _json_rows if file.suffix.lower() in (".jsonl", ".ndjson") else _csv_rows
    with open_table(file) as text:
        yield from read(file, text, path_column, caption_column)


def _json_rows(file: Path, text: Iterator[str], path: str | None, caption: str | None) -> Iterator[Entry]:
    for where, row in json_lines(file, text):
        keys = list(row)
        texts = row[_column(where, keys, caption, CAPTION_COLUMNS, "caption")]
        name = row[_column(where, keys, path, PATH_COLUMNS, "path")]
        split = row.get(_optional(keys, SPLIT_COLUMNS) or "")
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
            raise InputError(f"{where}: the caption must be text or a list of texts, got {texts!r}")
        if not isinstance(name, str):
            raise InputError(f"{where}: the path must be text, got {name!r}")
        if not isinstance(split, str | None):
            raise InputError(f"{where}: the split must be text, got {split!r}")
        yield _entry(where, name, texts, split)


def _csv_rows(file: Path, text: Iterator[str], path: str | None, caption: str | None) -> Iterator[Entry]:
    header = next(text, "")
    tabs = file.suffix.lower() == ".tsv"
    delimiter = "\t" if tabs else _delimiter(header, path, caption)
    columns = csv_columns(header, delimiter, quotes=not tabs)
    first = place(file, 1)
    if not {name.lower() for name in columns} & _wanted(path, PATH_COLUMNS):
        _check_header(first, header)
    or_row = ", or put the names of the columns above line 1 if it is a row"
    path_at = columns.index(_column(first, columns, path, PATH_COLUMNS, "path", or_row))
    caption_at = columns.index(_column(first, columns, caption, CAPTION_COLUMNS, "caption", or_row))
    split_name = _optional(columns, SPLIT_COLUMNS)
    split_at = None if split_name is None else columns.index(split_name)
    for where, row in csv_rows(file, text, columns, delimiter, quotes=not tabs):
        _check_quotes(where, row, delimiter)
        yield _entry(where, row[path_at], [row[caption_at]], None if split_at is None else row[split_at])


def _check_header(where: str, header: str) -> None:
    """InputError where line 1 is nothing, or a row, so that no name of a column can be given."""
    if not header.strip():
        raise InputError(f"{where}: there must be a header with the names of the columns, got an empty line or file")
    for delimiter in ("\t", *DELIMITERS):
        cells = [cell.strip().strip('"') for cell in header.split(delimiter)]
        for cell in cells if len(cells) > 1 else ():
            if not _NUMBER.sub("", cell.lower()).endswith(PICTURE_SUFFIXES):
                continue
            names = f"path{delimiter}caption".replace("\t", "<tab>")
            advice = f"put a line such as {names} above it, with a name for each column"
            if _NUMBER.search(cell):
                advice += r", take the numbers behind the paths away (sed 's/#[0-9]*\t/\t/'), and name the file .tsv"
            raise InputError(f"{where}: there must be a header, got a row of the picture {cell[:80]!r}: {advice}")


def _entry(where: str, name: str, captions: Sequence[str], split: str | None) -> Entry:
    """One row; blanks around the path belong to it only where a file is called so."""
    names = tuple(dict.fromkeys((name, name.strip())))
    return Entry(where, names, tuple(captions), split_named(split, where) if split and split.strip() else None)


def _check_quotes(where: str, row: Sequence[str], delimiter: str) -> None:
    """InputError for a cell that took in the rows behind it, because its quotation mark is not closed where it ends."""
    for cell in row:
        for line in cell.split("\n")[1:]:
            first = line.partition(delimiter)[0].strip().strip('"').lower()
            if delimiter in line and first.endswith(PICTURE_SUFFIXES):
                raise InputError(
                    f"{where}: a quotation mark is opened here and not closed before the next row, {line.strip()!r}"
                )


def _delimiter(header: str, path: str | None, caption: str | None) -> str:
    """The separator under which the header has both columns; where none is such, that of the most columns."""
    for delimiter in DELIMITERS:
        names = {name.strip().strip('"').lower() for name in header.strip().split(delimiter)}
        if names & _wanted(path, PATH_COLUMNS) and names & _wanted(caption, CAPTION_COLUMNS):
            return delimiter
    return csv_delimiter(header)


def _wanted(given: str | None, usual: Sequence[str]) -> set[str]:
    return set(usual) if given is None else {given.strip().lower()}


def _column(
    where: str, columns: Sequence[str], given: str | None, usual: Sequence[str], kind: str, or_row: str = ""
) -> str:
    """The name of a column, as the header or the JSON object writes it."""
    found = _optional(columns, usual if given is None else (given.strip().lower(),))
    if found is None:
        wanted = f"named {', '.join(usual)}" if given is None else repr(given)
        advice = f"give --{kind}-column{or_row}"
        shown = ", ".join(repr(name[:40]) for name in columns[:9]) or "nothing"
        raise InputError(f"{where}: there must be a column of the {kind} {wanted}, got {shown}: {advice}")
    return found


def _optional(columns: Sequence[str], usual: Sequence[str]) -> str | None:
    lower = [name.strip().lower() for name in columns]
    return next((columns[lower.index(name)] for name in usual if name in lower), None)
