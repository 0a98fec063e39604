"""Parquet files: a column of embeddings with ids and metadata beside, or metadata alone. Reading needs pyarrow.

The column of embeddings has lists of lists of floating-point numbers, or lists for one vector a row; lists of a fixed
size are read alike. The column `id` has the ids, and a text column `metadata` may hold JSON objects, as `chan gallery
export` writes them. Every other column is metadata by its name, and what is null, or NaN as libraries of tables write
what is missing, is left out. Dates and times become text in the form of ISO 8601, durations their seconds, decimals
numbers (whole ones exactly, others the nearest of 64 bits), UUIDs text, and bytes the text that they are in UTF-8.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date, time, timedelta
from decimal import Decimal
from os import fsencode
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfoNotFoundError

import numpy as np
from numpy.typing import NDArray

from ..counts import counted
from ..errors import InputError, reason_of
from ..extras import needs
from ..files import atomic_file
from ..strict_json import parse_json
from .vector_file import StoredRow, VectorFile

ID, METADATA = "id", "metadata"
_VECTORS = ("embeddings", "embedding", "vectors")
_ROWS = 256  # read at once: 75 MB of 72 x 1024 float32


def open_parquet_vectors(file: Path) -> VectorFile:
    """The rows of a file that has a column of embeddings.

    Raises:
        InputError: it is no Parquet file, or which column has the embeddings is not clear.
        MissingExtra: pyarrow is not installed.
    """
    with _reading(file) as parquet:
        schema = parquet.schema_arrow
        floats = {field.name: _depth(field.type) for field in schema if _depth(field.type)}
        named = [name for name in _VECTORS if name in floats] or list(floats)
        if len(named) != 1:
            found = ", ".join(floats) or ", ".join(f"{one.name} ({one.type})" for one in schema) or "no column"
            rule = "must have one column of lists of floating-point numbers, or name one of them `embeddings`"
            if len(set(_VECTORS) & set(floats)) > 1:
                rule, found = f"must have only one of the columns {', '.join(_VECTORS)}", ", ".join(named)
            raise InputError(f"{file} {rule}, got {found}")
        if len(set(schema.names)) < len(schema.names):
            raise InputError(f"{file}: each column must have a name of its own, got {', '.join(schema.names)}")
        column, deep = named[0], floats[named[0]] > 1
        about = parquet.metadata
        count, grouped = about.num_rows, sum(about.row_group(group).num_rows for group in range(about.num_row_groups))
        if count != grouped or count < 0:
            raise InputError(
                f"{file} cannot be read as Parquet: it claims {counted(count, 'row')}, and {grouped} are in its groups"
            )
        ids = None
        if ID in schema.names:
            ids = [_as_json(id) for id in parquet.read([ID]).column(0).to_pylist()]

    def read() -> Iterator[StoredRow]:
        with _reading(file) as parquet:
            for batch in parquet.iter_batches(_ROWS):
                stored = batch.column(column)
                others = _dicts(batch.drop_columns([name for name in (column, ID) if name in batch.schema.names]))
                for row, beside in enumerate(others):
                    yield _row(stored[row], deep, beside)

    return VectorFile(file, count, str(schema.field(column).type), ids, False, read)


def read_parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file as dicts; what is null or NaN is left out.

    Raises:
        InputError: it is no Parquet file, or is damaged.
        MissingExtra: pyarrow is not installed.
    """
    with _reading(file) as parquet:
        for batch in parquet.iter_batches(_ROWS):
            for row in _dicts(batch):
                try:
                    yield _metadata(row)
                except InputError as error:
                    raise InputError(f"{file}: {error}") from error


def write_parquet_vectors(
    file: Path, dtype: str, batches: Iterable[tuple[list[str], list[NDArray[Any]], list[str]]]
) -> None:
    """Write rows as `open_parquet_vectors` reads them: ids, vectors [L, D] and metadata as JSON, batch by batch.

    Raises:
        OSError: the file cannot be written; what was there before stays.
        MissingExtra: pyarrow is not installed.
    """
    with needs("pyarrow", "writing Parquet"):
        import pyarrow
        from pyarrow.parquet import ParquetWriter
    number = pyarrow.float16() if dtype == "float16" else pyarrow.float32()
    kind = pyarrow.list_(pyarrow.list_(number))
    schema = pyarrow.schema([(ID, pyarrow.string()), (_VECTORS[0], kind), (METADATA, pyarrow.string())])
    with atomic_file(file) as beside, pyarrow.OSFile(fsencode(beside), "wb") as out, ParquetWriter(out, schema) as to:
        for ids, vectors, metadata in batches:
            flat = np.concatenate(vectors)
            inner = pyarrow.ListArray.from_arrays(
                pyarrow.array(np.arange(len(flat) + 1, dtype=np.int32) * flat.shape[1], pyarrow.int32()),
                pyarrow.array(flat.reshape(-1)),
            )
            starts = np.cumsum([0, *map(len, vectors)], dtype=np.int32)
            lists = pyarrow.ListArray.from_arrays(pyarrow.array(starts), inner)
            to.write_batch(pyarrow.record_batch([ids, lists, metadata], schema=schema))


@contextmanager
def _reading(file: Path) -> Iterator[Any]:
    """The file, open, for a block that reads it: whatever pyarrow raises there is an InputError."""
    with needs("pyarrow", "reading Parquet"):
        from pyarrow import ArrowException, memory_map
        from pyarrow.parquet import ParquetFile
    try:
        with memory_map(fsencode(file)) as mapped, ParquetFile(mapped) as parquet:  # a path may be taken for an address
            yield parquet
    except InputError:
        raise
    except ZoneInfoNotFoundError as error:  # pyarrow 17 lets it through, which is a KeyError
        raise InputError(f"{file} cannot be read as Parquet: {error.args[0]}") from error
    except (ArrowException, OSError, ValueError, OverflowError) as error:  # the last of dates that Python lacks
        raise InputError(f"{file} cannot be read as Parquet: {reason_of(error)}") from error


def _depth(kind: Any) -> int:
    """How many lists are around floating-point numbers: 1 for a vector, 2 for vectors; 0 for everything else."""
    from pyarrow import types

    depth = 0
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth if types.is_floating(kind) and depth < 3 else 0


def _row(cell: Any, deep: bool, beside: dict[str, Any]) -> StoredRow:
    """One row: `cell` is a scalar of the column of embeddings, `deep` whether it has several vectors."""
    nothing = np.zeros((0, 0), np.float32)
    try:
        metadata = _metadata(beside)
    except InputError as error:
        return StoredRow(nothing, problem=str(error))
    if not cell.is_valid:
        return StoredRow(nothing, metadata, "its embeddings are null")
    inner = cell.values
    if deep:
        if inner.null_count:
            return StoredRow(nothing, metadata, "one of its vectors is null")
        widths = inner.value_lengths().unique().to_pylist()
        if len(widths) > 1:
            return StoredRow(nothing, metadata, f"its vectors must have one width, got {sorted(widths)}")
        count, inner = len(inner), inner.flatten()
    if inner.null_count:
        return StoredRow(nothing, metadata, "one of its numbers is null")
    numbers = inner.to_numpy(zero_copy_only=False)
    return StoredRow(numbers.reshape(count, -1) if deep and count else numbers, metadata)


def _dicts(batch: Any) -> list[dict[str, Any]]:
    """The rows of a batch, each with its columns by name."""
    rows: list[dict[str, Any]] = batch.to_pylist() if batch.num_columns else [{} for _ in range(batch.num_rows)]
    return rows


def _as_json(value: Any) -> Any:
    """A value as JSON has it, as the head of this module says; those inside lists and structs too. NaN becomes null."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value  # no JSON: whoever takes the row names it
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return value


def _metadata(row: dict[str, Any]) -> dict[str, Any]:
    found = {name: _as_json(value) for name, value in row.items() if name != METADATA}
    found = {name: value for name, value in found.items() if value is not None}
    inside = _as_json(row.get(METADATA))
    if isinstance(inside, str):
        try:
            inside = parse_json(inside)
        except InputError as error:
            raise InputError(f"the column {METADATA} must have JSON objects: {error}") from error
    if isinstance(inside, dict):
        return {**inside, **found}
    if inside is not None:
        raise InputError(f"the column {METADATA} must have JSON objects, got {inside!r}")
    return found
