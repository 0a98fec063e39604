"""Rows of embeddings in numpy's arrays, alone or with names: vectors.py lists the forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..counts import counted
from ..errors import InputError, reason_of
from ..strict_json import parse_json
from .store import found, texts, whole_numbers
from .vector_file import StoredRow, VectorFile, number_type

_NAMES = ("embeddings", "embedding", "vectors")
_ALIASES = {"doclens": "lengths", "attention_mask": "mask"}
_BESIDE = ("lengths", "mask", "offsets", "ids", "rows")


def rows_by_name(file: Path, members: Mapping[str, Any]) -> VectorFile:
    """An array [L, D] or [D] for each row, whose name is the row's id."""
    for name, array in members.items():
        _check_floats(f"{file}: {name}", array)

    def read() -> Iterator[StoredRow]:
        return (StoredRow(array[...]) for array in members.values())

    dtypes = sorted({number_type(array.dtype) for array in members.values()})
    return VectorFile(file, len(members), ", ".join(dtypes), list(members), False, read)


def rows_of_members(file: Path, members: Mapping[str, Any]) -> VectorFile:
    """The rows of a file with named arrays: one for all rows with what stands beside it, or one for each row."""
    if not members:
        raise InputError(f"{file} must hold arrays, got none")
    name = next((name for name in _NAMES if name in members), None)
    if name is not None:
        beside = {_ALIASES.get(other, other): array for other, array in members.items() if other != name}
        unknown = [other for other in beside if other not in _BESIDE]
        if unknown:
            known = ", ".join((*_BESIDE, *_ALIASES))
            raise InputError(f"{file}: beside `{name}` there may be {known}, got {unknown[0]}; see --metadata")
        return rows_of_array(file, members[name], beside)
    (first, array), *others = members.items()
    if not others and len(array.shape) == 3:
        return rows_of_array(file, array, {})
    if not others and len(array.shape) == 2:
        raise InputError(
            f"{file}: {first} {found(array)} can be one row of {counted(len(array), 'vector')}, or "
            f"{counted(len(array), 'row')} of one "
            "vector: write it as [1, L, D], or name it `embeddings`"
        )
    return rows_by_name(file, members)


def rows_of_array(file: Path, array: Any, beside: Mapping[str, Any]) -> VectorFile:
    """The rows of one array [N, L, D] or [T, D], with `lengths`, `mask` or `offsets`, and `ids` or `rows` beside it."""
    _check_floats(str(file), array)
    if len(array.shape) not in (2, 3) or 0 in array.shape:
        one = "; write one vector [D] as [1, D], a row of one vector" if len(array.shape) == 1 else ""
        raise InputError(f"{file} must have embeddings [N, L, D] or [N, D], none of them 0, got {found(array)}{one}")
    told = [name for name in ("lengths", "mask", "offsets") if name in beside]
    if len(told) > 1:
        raise InputError(f"{file}: only one of {', '.join(told)} may say which vectors a row has")
    how = told[0] if told else None
    count, select = (_flat if len(array.shape) == 2 else _padded)(file, array, how, beside.get(how or ""))
    ids, metadata = _ids(file, beside, count)

    def read() -> Iterator[StoredRow]:
        return (StoredRow(select(row), metadata[row] if metadata else {}) for row in range(count))

    return VectorFile(file, count, number_type(array.dtype), ids, len(array.shape) == 3 and how is None, read)


def _flat(file: Path, array: Any, how: str | None, beside: Any) -> tuple[int, Callable[[int], Any]]:
    """Number of rows, and the vectors of one, where all vectors stand one after the other."""
    total = int(array.shape[0])
    if how is None:
        return total, lambda row: array[row]
    if how == "mask":
        raise InputError(f"{file}: a mask needs embeddings [N, L, D], got {found(array)}; use lengths")
    numbers = whole_numbers(file, how, beside, "[N]" if how == "lengths" else "[N + 1]")
    edges = np.concatenate([[0], np.cumsum(numbers)]) if how == "lengths" else numbers
    if numbers.ndim != 1 or len(edges) < 2 or edges[0] != 0 or edges[-1] != total or (np.diff(edges) < 0).any():
        rule = "add up to" if how == "lengths" else "rise from 0 to"
        raise InputError(
            f"{file}: {how} must be integers that {rule} the {counted(total, 'vector')}, got {_shown(numbers)}"
        )
    return len(edges) - 1, lambda row: array[int(edges[row]) : int(edges[row + 1])]


def _padded(file: Path, array: Any, how: str | None, beside: Any) -> tuple[int, Callable[[int], Any]]:
    """Number of rows, and the vectors of one, where every row has L vectors."""
    count, longest = int(array.shape[0]), int(array.shape[1])
    if how is None:
        return count, lambda row: array[row]
    if how == "offsets":
        raise InputError(f"{file}: offsets need embeddings [T, D], got {found(array)}; use lengths or a mask")
    if how == "lengths":
        lengths = whole_numbers(file, how, beside, "[N]")
        if lengths.shape != (count,) or lengths.min() < 0 or lengths.max() > longest:
            raise InputError(f"{file}: lengths must be {count} integers up to {longest}, got {_shown(lengths)}")
        return count, lambda row: array[row][: lengths[row]]
    if tuple(beside.shape) != (count, longest) or beside.dtype.kind not in "biuf":
        raise InputError(f"{file}: mask must be numbers 0 and 1 [{count}, {longest}], got {found(beside)}")

    def select(row: int) -> Any:
        real = beside[row]
        if not np.isin(real, (0, 1)).all():
            raise InputError(
                f"{file}: mask must be numbers 0 and 1, got {real[~np.isin(real, (0, 1))][0]} in row {row}"
            )
        return array[row][real.astype(bool)]

    return count, select


def _ids(file: Path, beside: Mapping[str, Any], count: int) -> tuple[list[Any] | None, list[dict[str, Any]] | None]:
    """Ids and metadata of the rows, where the file has them."""
    if "rows" in beside:
        if "ids" in beside or beside["rows"].dtype != np.uint8:
            raise InputError(
                f"{file}: rows must be JSON lines as uint8, without ids beside, got {found(beside['rows'])}"
            )
        lines = _json_lines(file, bytes(beside["rows"]))
        if len(lines) != count:
            raise InputError(f"{file}: rows must have {counted(count, 'line')}, got {len(lines)}")
        return [line["id"] for line in lines], [line["metadata"] for line in lines]
    if "ids" not in beside:
        return None, None
    return texts(file, "ids", beside["ids"], count), None


def _json_lines(file: Path, data: bytes) -> list[dict[str, Any]]:
    lines = []
    try:
        for number, line in enumerate(data.decode().rstrip("\n").split("\n"), 1):
            value = parse_json(line)
            if not isinstance(value, dict) or value.keys() != {"id", "metadata"} or type(value["metadata"]) is not dict:
                raise InputError(f"line {number} must be an object with id and metadata")
            lines.append(value)
    except (UnicodeDecodeError, InputError) as error:
        raise InputError(f"{file}: rows must be JSON lines: {reason_of(error)}") from error
    return lines


def _check_floats(where: str, array: Any) -> None:
    """InputError unless an array is of floating-point numbers: bfloat16 is safetensors_file.py's own."""
    if str(array.dtype) != "bfloat16" and array.dtype.kind != "f":
        hint = "; multiply quantized ones by their scale" if array.dtype.kind in "iu" else ""
        raise InputError(f"{where} must be floating-point numbers, got {found(array)}{hint}")


def _shown(numbers: Any) -> str:
    """Integers for a message."""
    return f"{numbers.min()} to {numbers.max()}, {numbers.sum()} in all" if numbers.size else "none"
