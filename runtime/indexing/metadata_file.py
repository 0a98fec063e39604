"""Metadata of rows from a file: CSV with a header, JSON lines or Parquet. For pictures each line has their `path`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.parquet import read_parquet_rows
from ..data.text_table import csv_columns, csv_delimiter, csv_rows, json_lines, open_table, place
from ..errors import InputError
from ..gallery.values import checked_row
from .identity import SOURCE
from .sources import Source


def read_metadata(path: str | Path) -> dict[str, dict[str, Any]]:
    """Metadata by the picture's path, as the file names it: `read_table` by `path`.

    Raises:
        InputError: as `read_table`; a line has no path, or a path stands twice.
    """
    found: dict[str, dict[str, Any]] = {}
    for where, row in read_table(path, "path", needed=True):
        name = row.pop("path", None)
        if not isinstance(name, str) or not name:
            raise InputError(f"{where}: must have a `path`, got {name!r}")
        if name in found:
            raise InputError(f"{where}: each path must occur once, got {name!r} again")
        found[name] = row
    return found


def read_table(path: str | Path, key: str, *, needed: bool = False) -> list[tuple[str, dict[str, Any]]]:
    """The lines of a file of metadata, each with its place in words.

    A file whose name ends in `.csv` is CSV with a header, separated by commas, semicolons, tabs or `|`; its numbers,
    `true` and `false` become such values, and empty cells are left out. In `.parquet`, null and NaN are. Every other
    file holds one JSON object a line.

    Args:
        path: the file.
        key: the column that names the rows, which stays text.
        needed: whether a CSV file must have that column.

    Raises:
        InputError: the file cannot be read, or a line is not such a thing: names the line. A key is one of those that
            the gallery itself keeps.
        MissingExtra: reading Parquet needs a library that is not installed.
    """
    file = Path(path)
    found: list[tuple[str, dict[str, Any]]] = []
    for where, row in _lines(file, key, needed):
        if SOURCE in row:
            raise InputError(f"{where}: rename the reserved key {SOURCE!r}")
        try:
            found.append((where, checked_row(row)))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    if not found:
        raise InputError(f"{file} must hold at least one line of metadata, got none")
    return found


def with_metadata(source: Source, metadata: Mapping[str, Mapping[str, Any]]) -> tuple[Source, list[str]]:
    """The source with metadata added to its rows, and the paths that name no row.

    A path is that of the file, a row's id, or the path below the folder that was indexed.

    Raises:
        InputError: the source's rows are no files.
    """
    if not any(origin.path for origin in source.origins):
        raise InputError("metadata: needs a source of picture files")
    by_path = {str(Path(name).absolute()): name for name in metadata}
    rows: list[Mapping[str, Any]] = []
    used = set()
    for id, row, origin in zip(source.ids, source.metadata, source.origins, strict=True):
        name = next((name for name in (origin.name, id) if name in metadata), by_path.get(str(origin.path)))
        if name is None:
            rows.append(row)
        else:
            used.add(name)
            rows.append({**metadata[name], **row})
    return replace(source, metadata=rows), [name for name in metadata if name not in used]


def _lines(file: Path, key: str, needed: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    if file.suffix.lower() == ".parquet":
        for number, row in enumerate(read_parquet_rows(file), 1):
            yield place(file, number), row
        return
    with open_table(file) as text:
        yield from _csv_lines(file, text, key, needed) if file.suffix.lower() == ".csv" else json_lines(file, text)


def _csv_lines(file: Path, text: Iterator[str], key: str, needed: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    header = next(text, "")
    delimiter = csv_delimiter(header)
    columns = csv_columns(header, delimiter)
    if not columns or (needed and key not in columns):
        raise InputError(f"{place(file, 1)}: the header must have a column `{key}`, got {columns or 'nothing'}")
    for where, row in csv_rows(file, text, columns, delimiter):
        cells = zip(columns, row, strict=True)
        yield where, {name: cell if name == key else _typed(cell) for name, cell in cells if cell != ""}


def _typed(cell: str) -> Any:
    """A CSV cell as a finite number or a boolean, where it is written as JSON writes one; otherwise as it is."""
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return cell
