"""Region features in the .tsv files of bottom-up attention: a line for each image, arrays in base64."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..counts import counted
from ..errors import InputError, reason_of
from .boxes import Boxes, from_pixels
from .store import MAX_IMAGES, RegionStore, check_not_empty, one_width

# image_id, image_w, image_h, num_boxes, boxes, features: the last two are float32 in base64.
_COLUMNS = 6
_MAX_LINE = 64 << 20


def open_tsv(file: Path, ids: Sequence[str] | None) -> RegionStore:
    """The store of a .tsv file; it is read once, for the place of every line.

    Args:
        file: lines of image_id, image_w, image_h, num_boxes, boxes, features, separated by tabs.
        ids: images in order; None for the order of the file.

    Raises:
        InputError: a line breaks that form, an image is there twice, or one that `ids` names is missing.
    """
    places: dict[str, int] = {}
    sizes: dict[str, tuple[int, int]] = {}
    try:
        with open(file, "rb") as stream:
            place = 0
            while line := stream.readline(_MAX_LINE):
                where = f"{file}: line {len(places) + 1}"
                name, regions, encoded = _columns(where, line)
                if name in places or len(places) >= MAX_IMAGES:
                    raise InputError(f"{where} must be another image, got {name!r} again")
                places[name] = place
                sizes[name] = (regions, _width(where, regions, encoded))
                place += len(line)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {reason_of(error)}") from error
    names = list(places) if ids is None else list(ids)
    missing = next((name for name in names if name not in places), None)
    if missing is not None or not names:
        raise InputError(f"{file} has no line of the image id {missing!r}" if names else f"{file} holds no image")
    check_not_empty(file, np.array([sizes[name][0] for name in names]))
    width = one_width(file, {sizes[name][1] for name in names})

    def read(rows: NDArray[np.int64]) -> list[NDArray[Any]]:
        try:
            with open(file, "rb") as stream:
                return [_features(f"{file}: image {names[row]!r}", stream, places[names[row]], width) for row in rows]
        except OSError as error:
            raise InputError(f"{file} cannot be read: {reason_of(error)}") from error

    def read_boxes(rows: NDArray[np.int64]) -> list[Boxes | None]:
        try:
            with open(file, "rb") as stream:
                return [_boxes(f"{file}: image {names[row]!r}", stream, places[names[row]]) for row in rows]
        except OSError as error:
            raise InputError(f"{file} cannot be read: {reason_of(error)}") from error

    lengths = np.array([sizes[name][0] for name in names], np.int64)
    return RegionStore(file, len(names), int(lengths.max()), width, read, names, lengths, read_boxes)


def _columns(where: str, line: bytes) -> tuple[str, int, bytes]:
    """Image id, number of boxes, and the features in base64."""
    columns = line.rstrip(b"\r\n").split(b"\t")
    if len(columns) != _COLUMNS:
        raise InputError(f"{where} must have {_COLUMNS} columns (image_id ... features), got {len(columns)}")
    try:
        regions = int(columns[3])
        name = columns[0].decode()
    except ValueError as error:
        given = f"got {columns[0].decode(errors='replace')!r} and {columns[3].decode(errors='replace')!r}"
        raise InputError(f"{where}: image_id must be text and num_boxes a number, {given}") from error
    if regions < 0:
        raise InputError(f"{where}: num_boxes must not be negative, got {regions}")
    return name, regions, columns[5]


def _width(where: str, regions: int, encoded: bytes) -> int:
    """F, from the length of the text: 3 bytes in 4 characters, less what fills up the end."""
    size = len(encoded) // 4 * 3 - encoded[-2:].count(b"=")
    if regions and (len(encoded) % 4 or not size or size % (4 * regions)):
        raise InputError(f"{where}: features must be float32 [{regions}, F] in base64, got {len(encoded)} characters")
    return size // (4 * regions) if regions else 0


def _boxes(where: str, stream: Any, place: int) -> Boxes:
    stream.seek(place)
    line = stream.readline(_MAX_LINE)
    _, regions, _ = _columns(where, line)
    columns = line.split(b"\t")
    corners = decode_floats(f"{where}: boxes", columns[4]).reshape(-1)
    if corners.size != 4 * regions:
        raise InputError(f"{where}: boxes must be float32 [{regions}, 4], got {counted(corners.size, 'number')}")
    try:
        width, height = float(columns[1]), float(columns[2])
    except ValueError as error:
        raise InputError(f"{where}: image_w and image_h must be numbers: {error}") from error
    return from_pixels(where, corners.reshape(regions, 4), width, height)


def decode_floats(where: str, encoded: bytes | str) -> NDArray[np.float32]:
    """float32 in base64.

    Raises:
        InputError: it is not base64, or holds a part of a number.
    """
    try:
        return np.frombuffer(base64.b64decode(encoded, validate=True), "<f4")
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{where} must be base64: {error}") from error


def _features(where: str, stream: Any, place: int, width: int) -> NDArray[Any]:
    stream.seek(place)
    _, regions, encoded = _columns(where, stream.readline(_MAX_LINE))
    values = decode_floats(f"{where}: features", encoded)
    if values.size != regions * width:
        raise InputError(
            f"{where}: features must be float32 [{regions}, {width}], got {counted(values.size, 'number')}"
        )
    return values.reshape(regions, width)
