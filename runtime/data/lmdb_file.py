"""Region features in an LMDB, as they are distributed: an image id -> a record of its features and boxes.

A record is an .npz archive, or a pickle of a dictionary of plain values, as the lines of bottom-up attention were
packed: its features and boxes are float32 in base64. Of a pickle only numbers, text, bytes, lists and dictionaries are
read, and nothing in it is executed.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..counts import counted
from ..errors import InputError, reason_of
from ..extras import needs
from .boxes import BOX_NAMES, SIZE_NAMES, Boxes, boxes_of, why_some_unplaced
from .store import FEATURE_NAMES, MAX_IMAGES, OF_ONE_IMAGE, RegionStore, check_image, feature_name, one_width, unread
from .tsv import decode_floats

_MAX_RECORD = 64 << 20
_KEYS = b"keys"  # under which some files keep the list of their ids


def open_lmdb(path: Path, ids: Sequence[str] | None) -> RegionStore:
    """The store of an LMDB; every record is read once now, for its shape.

    Args:
        path: the folder, or the file.
        ids: image ids in order; None for those of the file in its own order.

    Raises:
        InputError: it is no LMDB, a record is damaged or of another form, or an image that `ids` names is missing.
        MissingExtra: lmdb is not installed.
    """
    with needs("lmdb", f"reading {path}"):
        import lmdb
    try:
        opened = lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, max_readers=1, readahead=False)
        with opened.begin() as transaction:
            held = [bytes(key) for key in transaction.cursor().iternext(values=False) if bytes(key) != _KEYS]
    except lmdb.Error as error:
        raise InputError(f"{path} cannot be read as an LMDB: {reason_of(error)}") from error
    if not held or len(held) > MAX_IMAGES:
        raise InputError(f"{path} must hold 1 to {MAX_IMAGES:,} images, got {len(held)}")
    keys = {_text(path, key): key for key in held}
    names = list(keys) if ids is None else list(ids)
    missing = next((name for name in names if name not in keys), None)
    if missing is not None:
        raise InputError(f"{path} has no image id {missing!r}")

    def record(name: str) -> _Record:
        where = f"{path}: image {name!r}"
        try:
            with opened.begin(buffers=True) as transaction:
                value = bytes(transaction.get(keys[name]) or b"")
        except lmdb.Error as error:
            raise InputError(f"{where} cannot be read: {reason_of(error)}") from error
        return _read_record(where, value)

    def features(name: str, found: _Record) -> NDArray[Any]:
        return _features(f"{path}: image {name!r}", found.values)

    shapes, stored, left_out = [], [], set[str]()
    for name in names:
        found = record(name)
        shapes.append(features(name, found).shape)
        stored.append(list(found.names))
        left_out |= unread(path, found.names, OF_ONE_IMAGE)
    width = one_width(path, {shape[1] for shape in shapes})
    lengths = np.array([shape[0] for shape in shapes], np.int64)

    def read(rows: NDArray[np.int64]) -> list[NDArray[Any]]:
        return [features(names[row], record(names[row])) for row in rows]

    def read_boxes(rows: NDArray[np.int64]) -> list[Boxes | None]:
        found = []
        for row in rows:
            where, values = f"{path}: image {names[row]!r}", record(names[row]).values
            boxes = {name: _array(f"{where}: {name}", values[name], 4) for name in BOX_NAMES if name in values}
            sizes = {name: values[name] for name in SIZE_NAMES if name in values}
            found.append(boxes_of(where, {**boxes, **sizes}, int(lengths[row])))
        return found

    why = why_some_unplaced(stored, read_boxes)
    return RegionStore(path, len(names), int(lengths.max()), width, read, names, lengths, read_boxes, left_out, why)


class _Record(NamedTuple):
    """What is read of a record, and the names of all that it holds."""

    values: Mapping[str, Any]
    names: Collection[str]


def _text(path: Path, key: bytes) -> str:
    try:
        return key.decode().removesuffix(".npz")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: a key must be an image id in UTF-8, got {key[:20]!r}") from error


def _read_record(where: str, value: bytes) -> _Record:
    if not 0 < len(value) <= _MAX_RECORD:
        raise InputError(f"{where} must have a record of at most {_MAX_RECORD:,} bytes, got {len(value):,}")
    try:
        if value.startswith(b"PK"):
            with np.load(io.BytesIO(value), allow_pickle=False) as archive:
                return _Record({name: archive[name] for name in archive.files if name in _WANTED}, archive.files)
        found = _Plain(io.BytesIO(value)).load()
    except InputError as error:  # of `_Plain`
        raise InputError(f"{where}: {error}") from error
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError) as error:
        raise InputError(f"{where} is damaged: {reason_of(error)}") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise InputError(f"{where} is neither an .npz archive nor a pickle of plain values: {error}") from error
    if not isinstance(found, Mapping):
        raise InputError(f"{where} must be a dictionary of features and boxes, got {type(found).__name__}")
    values = {str(name): item for name, item in found.items()}
    return _Record(values, values.keys())


_WANTED = (*FEATURE_NAMES, *BOX_NAMES, *SIZE_NAMES, "num_boxes")


class _Plain(pickle.Unpickler):
    """Reads plain values only: a name of anything else ends it before that is imported."""

    def find_class(self, module: str, name: str) -> Any:
        raise InputError(f"the record must be a dictionary of plain values, got one that would import {module}.{name}")


def _features(where: str, record: Mapping[str, Any]) -> NDArray[Any]:
    value = record[feature_name(where, record)]
    regions = record.get("num_boxes")
    if isinstance(value, str | bytes):
        values = decode_floats(f"{where}: features", value)
        if type(regions) is not int or regions < 1 or values.size % regions or not values.size:
            raise InputError(
                f"{where}: features must be float32 [num_boxes, F], got {values.size} and num_boxes {regions}"
            )
        value = values.reshape(regions, -1)
    array = _as_array(where, value)
    check_image(where, array)
    return array


def _as_array(where: str, value: Any) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise InputError(f"{where}: must be an array, got a {type(value).__name__}: {error}") from error


def _array(where: str, value: Any, columns: int) -> NDArray[Any]:
    if isinstance(value, str | bytes):
        values = decode_floats(where, value)
        if values.size % columns:
            raise InputError(f"{where} must be float32 [r, {columns}], got {counted(values.size, 'number')}")
        return values.reshape(-1, columns)
    return _as_array(where, value)
