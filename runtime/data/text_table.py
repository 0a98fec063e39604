"""Tables in text files, read line by line: one JSON object a line, or CSV with a header.

Every error names the file and the line at which its row begins.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError, reason_of
from ..strict_json import unique_keys

DELIMITERS = ",;\t|"  # Flickr30K's results.csv is separated by |


@contextmanager
def open_table(file: Path) -> Iterator[Iterator[str]]:
    """The lines of a text file in UTF-8, with or without a mark of byte order.

    Raises:
        InputError: the file cannot be read or, while its lines are read, is not UTF-8.
    """
    try:
        with open(file, encoding="utf-8-sig", newline="") as text:
            yield text
    except OSError as error:
        raise InputError(f"{file} cannot be read: {reason_of(error)}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} must be text in UTF-8, CSV or JSON lines: {reason_of(error)}") from error


def place(file: Path, line: int) -> str:
    """A line of a file, for messages."""
    return f"{file}, line {line}"


def json_lines(file: Path, text: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of JSON lines, each with its place; blank lines are passed over.

    Raises:
        InputError: a line is no JSON object.
    """
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place(file, number)}: must be a JSON object: {reason_of(error)}") from error
        if not isinstance(row, dict):
            raise InputError(f"{place(file, number)}: must be a JSON object, got {type(row).__name__}")
        yield place(file, number), row


def csv_delimiter(header: str) -> str:
    """What separates the cells of CSV: of `DELIMITERS` the one that gives the header the most columns."""
    return max(DELIMITERS, key=lambda delimiter: len(csv_columns(header, delimiter)))  # of equal ones the first


def csv_columns(header: str, delimiter: str = ",", *, quotes: bool = True) -> list[str]:
    """The names of the columns in the first line of CSV, without surrounding blanks."""
    return [name.strip() for name in next(csv.reader([header], delimiter=delimiter, quoting=_quoting(quotes)), [])]


def csv_rows(
    file: Path, text: Iterator[str], columns: Sequence[str], delimiter: str = ",", *, quotes: bool = True
) -> Iterator[tuple[str, list[str]]]:
    """The rows of CSV behind its header, each with its place; blank lines are passed over.

    Args:
        file: for messages.
        text: the lines behind the header.
        columns: names of the columns.
        delimiter: what separates cells.
        quotes: whether quotation marks enclose cells; otherwise they are letters.

    Raises:
        InputError: two columns have one name, or a row has another number of cells or a stray quotation mark.
    """
    if len(set(columns)) < len(columns):
        raise InputError(f"{place(file, 1)}: each column must have a name of its own, got {list(columns)}")
    reader = csv.reader(text, delimiter=delimiter, quoting=_quoting(quotes), strict=True)
    first = 2  # a cell in quotation marks may hold line breaks, so a row may begin lines before it ends
    try:
        for row in reader:
            where, first = place(file, first), reader.line_num + 2
            if row and len(row) != len(columns):
                raise InputError(
                    f"{where}: must have {len(columns)} cells, got {len(row)}: a cell that holds {delimiter!r} must "
                    "stand in quotation marks"
                )
            if row:
                yield where, row
    except csv.Error as error:
        raise InputError(
            f"{place(file, first)}: must be CSV: {error}: a quotation mark within a cell must be doubled, and its "
            "cell must stand in quotation marks"
        ) from error


def _quoting(quotes: bool) -> Any:  # csv.reader takes literals only
    return csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
