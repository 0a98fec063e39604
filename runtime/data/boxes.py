"""Boxes of stored regions, in the forms that region features come with, as fractions of the picture.

    boxes               left, top, width, height as fractions of the picture: what `chan features` writes
    spatial_features    left, top, right, bottom as fractions (and more behind): BUTD's HDF5 files
    boxes, bbox         left, top, right, bottom in pixels, with image_w and image_h beside: bottom-up attention. Beside
                        arrays of all images these are [N]

Boxes in pixels without the picture's size say nothing of where a region is, so they count as none, and
`why_unplaced` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..counts import counted
from ..errors import InputError

Boxes: TypeAlias = NDArray[np.float32]
BoxReader: TypeAlias = Callable[[int, Any], Boxes]  # an image, and its index into the stored array -> its boxes

BOX_NAMES = ("boxes", "spatial_features", "bbox")
SIZE_NAMES = ("image_w", "image_h")
# A detector's corner may lie a pixel past the edge, or the picture's size may have been rounded.
_SLACK = 0.02


def stored_boxes(file: Path, members: Mapping[str, Any], features: Any, images: int) -> BoxReader | None:
    """What reads boxes beside the features of all images, an array of the same first axes; None where there are none.

    Args:
        file: for errors.
        members: arrays of the file by name.
        features: the array that the boxes belong to.
        images: number of images (N); `image_w` and `image_h` [N] are the sizes of their pictures.
    """
    sizes = _sizes(members, images)
    for name in ("spatial_features", "boxes", "bbox"):
        array = members.get(name)
        if array is None or not _fits(array, features):
            continue
        if name == "spatial_features":
            return partial(_read_corners, f"{file}: {name}", array, None)
        if sizes is not None:
            return partial(_read_corners, f"{file}: {name}", array, sizes)
        if name == "boxes" and array.dtype.kind == "f" and _are_fractions(array):
            return partial(_read_fractions, f"{file}: {name}", array)
    return None


def why_unplaced(members: Mapping[str, Any], features: Any, images: int) -> str:
    """Why boxes beside the features of all images say nothing of where these are; empty where there are no boxes.

    Args:
        members, features, images: as of `stored_boxes`, which found no boxes in them.
    """
    held = {name: members[name] for name in BOX_NAMES if name in members}
    fitting = [name for name, array in held.items() if _fits(array, features)]
    if not fitting:
        return "; ".join(
            f"{name} must be numbers {[*features.shape[:-1], 4]}, got {array.dtype} {list(array.shape)}"
            for name, array in held.items()
        )
    given = [f"{name} {list(members[name].shape)}" for name in SIZE_NAMES if name in members]
    return f"{_in_pixels(fitting[0])}, {counted(images, 'number')} each, got {' and '.join(given) or 'none'}"


def why_some_unplaced(names: Sequence[Collection[str]], read: Callable[[NDArray[np.int64]], list[Boxes | None]]) -> str:
    """As `why_unplaced`, where each image has arrays of its own.

    Args:
        names: of what is stored with each image.
        read: rows -> boxes, as of a `RegionStore`.
    """
    sizeless = [
        row for row, held in enumerate(names) if "bbox" in held or "boxes" in held if not set(SIZE_NAMES) <= set(held)
    ]
    with suppress(InputError):  # boxes that are no boxes are an error when they are read
        if sizeless and read(np.array(sizeless[:1]))[0] is None:
            which = (
                "those of all images" if len(sizeless) == len(names) else f"those of {len(sizeless)} of {len(names)}"
            )
            name = "boxes" if "boxes" in names[sizeless[0]] else "bbox"
            return f"{_in_pixels(name)}, which {which} lack"
    return ""


def _in_pixels(name: str) -> str:
    return f"{name} in pixels need the sizes of the pictures beside them, image_w and image_h"


def _fits(array: Any, features: Any) -> bool:
    """Whether an array can be boxes of the regions of these features."""
    of_regions = tuple(array.shape[:-1]) == tuple(features.shape[:-1])
    return bool(array.dtype.kind in "fiu" and array.shape and of_regions and array.shape[-1] >= 4)


def _read_fractions(where: str, array: Any, image: int, rows: Any) -> Boxes:
    return checked(where, np.asarray(array[rows], np.float32)[:, :4])


def _read_corners(where: str, array: Any, sizes: NDArray[np.float64] | None, image: int, rows: Any) -> Boxes:
    width, height = (1.0, 1.0) if sizes is None else map(float, sizes[image])
    return from_pixels(f"{where} of image {image}", np.asarray(array[rows], np.float32)[:, :4], width, height)


def _sizes(members: Mapping[str, Any], images: int) -> NDArray[np.float64] | None:
    """Width and height of each picture [N, 2], where both are numbers beside the features."""
    columns = [members[name] for name in SIZE_NAMES if name in members]
    if len(columns) < 2 or any(one.dtype.kind not in "fiu" for one in columns):
        return None
    if any(tuple(one.shape) not in ((images,), (images, 1)) for one in columns):
        return None
    return np.stack([np.asarray(one[()], np.float64).reshape(-1) for one in columns], axis=1)


def boxes_of(where: str, held: Mapping[str, Any], regions: int) -> Boxes | None:
    """The boxes of one image, from arrays of its own; None where there are none or the picture's size is missing.

    Raises:
        InputError: boxes that are no numbers, of another count than the regions, or not inside the picture.
    """
    array = next((held[name] for name in BOX_NAMES if name in held), None)
    if array is None:
        return None
    values = np.asarray(array)
    if values.dtype.kind not in "fiu" or values.ndim != 2 or values.shape[0] != regions or values.shape[1] < 4:
        raise InputError(f"{where}: boxes must be numbers [{regions}, 4], got {values.dtype} {list(values.shape)}")
    values = values[:, :4].astype(np.float32)
    if "spatial_features" in held and "boxes" not in held:
        return from_pixels(where, values, 1.0, 1.0)
    sizes = [np.asarray(held[name]).reshape(-1) for name in SIZE_NAMES if name in held]
    if len(sizes) == 2 and all(size.size == 1 and size.dtype.kind in "fiu" for size in sizes):
        return from_pixels(where, values, float(sizes[0][0]), float(sizes[1][0]))
    return checked(where, values) if "boxes" in held and _are_fractions(values) else None


def from_pixels(where: str, corners: Boxes, width: float, height: float) -> Boxes:
    """Left, top, right, bottom in pixels -> left, top, width, height as fractions of the picture.

    Raises:
        InputError: a size that is not positive, or a box that is not inside the picture.
    """
    if not (0 < width < np.inf and 0 < height < np.inf):
        raise InputError(f"{where}: the picture's size must be positive, got {width:g} x {height:g}")
    scaled = corners.astype(np.float64) / np.array([width, height, width, height])
    fractions = np.concatenate([scaled[:, :2], scaled[:, 2:] - scaled[:, :2]], axis=1)
    return checked(where, fractions.astype(np.float32))


def checked(where: str, boxes: Boxes) -> Boxes:
    """Boxes as fractions, cut at the picture's edges.

    Raises:
        InputError: a box that is not finite or not inside the picture.
    """
    ends = boxes[:, :2] + boxes[:, 2:]
    inside = np.isfinite(boxes).all(1) & (boxes >= -_SLACK).all(1) & (ends <= 1 + _SLACK).all(1)
    if not inside.all():
        region = int((~inside).argmax())
        found = [round(float(part), 4) for part in boxes[region]]
        raise InputError(
            f"{where}: a box must be inside the picture, and that of region {region} is {found}: left, top, width and "
            "height as fractions of it"
        )
    start = boxes[:, :2].clip(0, 1)
    cut: Boxes = np.concatenate([start, ends.clip(start, 1) - start], axis=1).astype(np.float32)
    return cut


def _are_fractions(array: Any) -> bool:
    """Whether the first boxes can be fractions: in pixels some number would be larger."""
    first = np.asarray(array[:64], np.float32)
    return bool((first <= 1 + _SLACK).all())
