"""Metadata of rows from a file: CSV with a header, JSON lines or Parquet. For pictures each line has their `path`."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.parquet import read_parquet_rows
from ..errors import InputError
from ..gallery.values import checked_metadata
from .identity import SOURCE
from .sources import Source


def read_metadata(path: str | Path) -> dict[str, dict[str, Any]]:
    """Metadata by the picture's path, as the file names it: `read_table` by `path`.

    Raises:
        InputError: as `read_table`; a line has no path, or a path stands twice.
    """
    found: dict[str, dict[str, Any]] = {}
    for place, row in read_table(path, "path", needed=True):
        name = row.pop("path", None)
        if not isinstance(name, str) or not name:
            raise InputError(f"{place}: must have a `path`, got {name!r}")
        if name in found:
            raise InputError(f"{place}: each path must occur once, got {name!r} again")
        found[name] = row
    return found


def read_table(path: str | Path, key: str, *, needed: bool = False) -> list[tuple[str, dict[str, Any]]]:
    """The lines of a file of metadata, each with its place in words.

    A file whose name ends in `.csv` is CSV with a header; its numbers, `true` and `false` become such values, and empty
    cells are left out. In `.parquet`, nulls are. Every other file holds one JSON object a line.

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
    try:
        for number, row in _lines(file, key, needed):
            place = f"{file}, line {number}"
            if SOURCE in row:
                raise InputError(f"{place}: rename the reserved key {SOURCE!r}")
            try:
                found.append((place, checked_metadata([row])[0]))
            except InputError as error:
                raise InputError(f"{place}: {str(error).removeprefix('metadata[0]')}") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} must be text in UTF-8, CSV or JSON lines: {error}") from error
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


def _lines(file: Path, key: str, needed: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    if file.suffix.lower() == ".parquet":
        yield from enumerate(read_parquet_rows(file), 1)
        return
    with open(file, encoding="utf-8-sig", newline="") as text:
        yield from _csv_lines(text, file, key, needed) if file.suffix.lower() == ".csv" else _json_lines(text, file)


def _json_lines(text: Iterator[str], file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file}, line {number}: must be a JSON object: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{file}, line {number}: must be a JSON object, got {type(row).__name__}")
        yield number, row


def _csv_lines(text: Iterator[str], file: Path, key: str, needed: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(text, restkey="")
    if reader.fieldnames is None or (needed and key not in reader.fieldnames):
        raise InputError(f"{file}, line 1: the header must have a column `{key}`, got {reader.fieldnames or 'nothing'}")
    if len(set(reader.fieldnames)) < len(reader.fieldnames):
        raise InputError(f"{file}, line 1: each column must have a name of its own, got {reader.fieldnames}")
    for row in reader:
        if "" in row or None in row.values():
            raise InputError(f"{file}, line {reader.line_num}: must have {len(reader.fieldnames)} cells")
        yield (
            reader.line_num,
            {name: cell if name == key else _typed(cell) for name, cell in row.items() if cell != ""},
        )


def _typed(cell: str) -> Any:
    """A CSV cell as a finite number or a boolean, where it is written as JSON writes one; otherwise as it is."""
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return cell
