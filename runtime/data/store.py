"""What every form of region features becomes: a store of images whose features are read row by row."""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..counts import counted
from ..errors import InputError
from .boxes import BOX_NAMES, SIZE_NAMES, Boxes, BoxReader, stored_boxes, why_unplaced

ID_NAMES = ("ids", "image_ids", "image_id")
NEEDED = ("pos_boxes", "num_boxes", *BOX_NAMES, *SIZE_NAMES, *ID_NAMES)
OF_ONE_IMAGE = ("num_boxes", *BOX_NAMES, *SIZE_NAMES, *ID_NAMES)
FEATURE_NAMES = ("features", "image_features", "feat", "x")
# Far beyond any data set, and below what a damaged header may claim: images of a split, bytes of one image.
MAX_IMAGES = 10**8
MAX_IMAGE_BYTES = 1 << 30
_LAST_LETTER = 0x10FFFF  # of Unicode
_NO_REGION = "give it one region with the features of the whole picture, or leave it and its captions out"


@dataclass(frozen=True)
class RegionStore:
    """Images on disk.

    Attributes:
        file: file or folder that holds them.
        count: number of images stored (N).
        max_regions: largest number of regions of an image.
        region_dim: width of the features (F).
        read: rows -> features [r, F] of each. Raises InputError where the file turns out to be damaged.
        names: image ids by row, where the file names its images; None where only their order tells which is which.
        lengths: number of regions of each image, [N].
        boxes: rows -> boxes [r, 4] of each, left, top, width and height as fractions of the picture; None for an image
            whose boxes are not known. The whole is None where the file has no boxes.
        left_out: names of arrays beside, which are neither features, nor boxes, nor ids.
        unplaced: why boxes that are stored say nothing of where regions are; empty where there are no such boxes.
    """

    file: Path
    count: int
    max_regions: int
    region_dim: int
    read: Callable[[NDArray[np.int64]], list[NDArray[Any]]]
    names: Sequence[str] | None = None
    lengths: NDArray[np.int64] | None = None
    boxes: Callable[[NDArray[np.int64]], list[Boxes | None]] | None = None
    left_out: Collection[str] = ()
    unplaced: str = ""


def padded_store(
    file: Path, array: Any, counts: NDArray[np.int64] | None, boxes: BoxReader | None = None
) -> RegionStore:
    """[N, R, F], of whose R regions the first counts[i] are real (all, where counts is None).

    `boxes` are read from an array [N, R, 4 or more].
    """
    check_floats(file, array)
    if len(array.shape) != 3 or 0 in array.shape:
        raise InputError(f"{file} must be float32 [N, regions, features], none of them 0, got {found(array)}")
    num_images, max_regions, region_dim = (int(size) for size in array.shape)
    check_size(file, num_images, max_regions * region_dim * array.dtype.itemsize)
    lengths = np.full(num_images, max_regions) if counts is None else counts
    if lengths.shape != (num_images,) or lengths.min() < 0 or lengths.max() > max_regions:
        raise InputError(
            f"{file}: num_boxes must be one number from 1 to {max_regions} for each of "
            f"{counted(num_images, 'image')}, got "
            f"{lengths.min()} to {lengths.max()} for {len(lengths)}"
        )
    check_not_empty(file, lengths)

    def read(rows: NDArray[np.int64]) -> list[NDArray[Any]]:
        images = [np.array(array[int(row)][: lengths[row]]) for row in rows]
        _unmap_pages(array)
        return images

    def read_boxes(rows: NDArray[np.int64]) -> list[Boxes | None]:
        return [None if boxes is None else boxes(int(row), int(row))[: lengths[row]] for row in rows]

    places = None if boxes is None else read_boxes
    return RegionStore(file, num_images, int(lengths.max()), region_dim, read, lengths=lengths, boxes=places)


def flat_store(file: Path, array: Any, spans: NDArray[np.int64], boxes: BoxReader | None = None) -> RegionStore:
    """[T, F] with the rows spans[i, 0]:spans[i, 1] of image i, and likewise boxes [T, 4 or more]."""
    check_floats(file, array)
    if len(array.shape) != 2 or 0 in array.shape:
        raise InputError(f"{file}: features beside pos_boxes must be float32 [T, F], got {found(array)}")
    if spans.ndim != 2 or spans.shape[1] != 2 or not len(spans):
        raise InputError(f"{file}: pos_boxes must be integers [N, 2], got {found(spans)}")
    if spans.min() < 0 or spans.max() > array.shape[0] or (spans[:, 0] > spans[:, 1]).any():
        raise InputError(
            f"{file}: pos_boxes must be row ranges first < last within the {counted(array.shape[0], 'feature row')}"
        )
    lengths = spans[:, 1] - spans[:, 0]
    check_not_empty(file, lengths)
    check_size(file, len(spans), int(lengths.max()) * int(array.shape[1]) * array.dtype.itemsize)

    def read(rows: NDArray[np.int64]) -> list[NDArray[Any]]:
        images = [np.array(array[int(spans[row, 0]) : int(spans[row, 1])]) for row in rows]
        _unmap_pages(array)
        return images

    def read_boxes(rows: NDArray[np.int64]) -> list[Boxes | None]:
        places = (slice(int(first), int(last)) for first, last in spans[rows])
        return [None if boxes is None else boxes(int(row), place) for row, place in zip(rows, places, strict=True)]

    places = None if boxes is None else read_boxes
    longest = int(lengths.max())
    return RegionStore(file, len(spans), longest, int(array.shape[1]), read, lengths=lengths, boxes=places)


def store_of(file: Path, members: Mapping[str, Any]) -> RegionStore:
    """The store of a file with named arrays: `features` with `pos_boxes`, with `num_boxes`, or alone, and their ids."""
    name = feature_name(file, members)
    if "pos_boxes" in members:
        spans = whole_numbers(file, "pos_boxes", members["pos_boxes"], "[N, 2]")
        store = flat_store(file, members[name], spans, stored_boxes(file, members, members[name], len(spans)))
    else:
        counts = members.get("num_boxes")
        lengths = None if counts is None else whole_numbers(file, "num_boxes", counts, "[N]").reshape(-1)
        images = members[name].shape[0] if members[name].shape else 0
        store = padded_store(file, members[name], lengths, stored_boxes(file, members, members[name], images))
    if store.boxes is None:
        store = replace(store, unplaced=why_unplaced(members, members[name], store.count))
    given = [name for name in ID_NAMES if name in members]
    if len(given) > 1:
        raise InputError(f"{file}: one array may hold the ids of the images, got {', '.join(given)}: keep one")
    if not given:
        return store
    names = [str(one) for one in texts(file, given[0], members[given[0]], store.count)]
    repeated, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise InputError(f"{file}: {given[0]} must name each image once, got {repeated!r} {count} times")
    return replace(store, names=names)


def chosen(store: RegionStore, ids: Sequence[str], ids_name: str) -> RegionStore:
    """The images that `ids` names, in this order, of a store that names its images.

    Raises:
        InputError: the store has no image of one of the ids.
    """
    assert store.names is not None
    if list(ids) == list(store.names):
        return store
    places = {name: row for row, name in enumerate(store.names)}
    missing = next((name for name in ids if name not in places), None)
    if missing is not None:
        raise InputError(
            f"{store.file} names its images itself, and none {missing!r}, which {ids_name} names: take the ids that it "
            f"has, such as {store.names[0]!r}, or write it without them"
        )
    rows, boxes = np.array([places[name] for name in ids], np.int64), store.boxes
    return replace(
        store,
        count=len(rows),
        read=lambda wanted: store.read(rows[wanted]),
        names=list(ids),
        lengths=None if store.lengths is None else store.lengths[rows],
        boxes=None if boxes is None else lambda wanted: boxes(rows[wanted]),
    )


def texts(file: Path, name: str, array: Any, count: int) -> list[Any]:
    """The ids of `count` rows in an array of text, of bytes in UTF-8 or of integers.

    Raises:
        InputError: it is of another kind or length, or holds what is no text.
    """
    ids = np.asarray(array[()])
    if ids.dtype.kind == "O" and all(isinstance(one, bytes) for one in ids.reshape(-1)):  # text of HDF5
        ids = ids.astype(bytes) if ids.size else ids
    if ids.shape != (count,) or ids.dtype.kind not in "iuUS":
        raise InputError(f"{file}: {name} must be {counted(count, 'text')} or integers, got {found(ids)}")
    if ids.dtype.kind == "U" and ids.dtype.itemsize:
        letters = np.ascontiguousarray(ids, ids.dtype.newbyteorder("=")).view(np.uint32)  # tolist() fails at no letter
        if letters.max() > _LAST_LETTER:
            row = int(letters.argmax()) // (len(letters) // count)
            raise InputError(f"{file}: {name} must be text, got no letter, {letters.max():#x}, in row {row}")
    if ids.dtype.kind != "S":
        plain: list[Any] = ids.tolist()
        return plain
    try:
        return [id.decode() for id in ids.tolist()]
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: {name} must be text in UTF-8, got {error.object!r}") from error


def feature_name(where: Path | str, names: Collection[str]) -> str:
    """Which of the names in a file is that of the features."""
    for name in FEATURE_NAMES:
        if name in names:
            return name
    wanted = ", ".join(f"`{name}`" for name in FEATURE_NAMES[1:])
    raise InputError(f"{where} has no `features` (or {wanted}); found {sorted(names)[:9]}")


def unread(where: Path | str, names: Collection[str], beside: Collection[str] = NEEDED) -> set[str]:
    """The names in a file that are neither that of its features nor among those of what may stand beside them."""
    return set(names) - {feature_name(where, names), *beside}


def whole_numbers(file: Path, name: str, array: Any, shape: str) -> NDArray[np.int64]:
    """An array of integers, read whole; some exporters store them as floating-point numbers."""
    if array.dtype.kind not in "iuf" or int(np.prod(array.shape, dtype=object)) > 2 * MAX_IMAGES:
        raise InputError(f"{file}: {name} must be integers {shape}, got {found(array)}")
    values = np.asarray(array[()])
    if not np.isfinite(values).all() or (values != np.round(values)).any() or (np.abs(values) > 2**53).any():
        raise InputError(f"{file}: {name} must be integers {shape}, got {found(array)} with a fraction or no number")
    return values.astype(np.int64)


def check_image(where: Path | str, array: Any) -> None:
    """InputError unless an array can be the features of one image: float32 [r, F], neither 0."""
    check_floats(where, array)
    if len(array.shape) != 2 or array.shape[1] == 0:
        raise InputError(f"{where}: features must be float32 [r, F], neither 0, got {found(array)}")
    if array.shape[0] == 0:
        raise InputError(f"{where}: every image must have a region, and this one has none: {_NO_REGION}")
    check_size(where, 1, int(array.shape[0]) * int(array.shape[1]) * array.dtype.itemsize)


def check_floats(file: Path | str, array: Any) -> None:
    """InputError unless the features are floating-point numbers."""
    if array.dtype.kind in "iu":
        raise InputError(
            f"{file} must be float32 or float16 features, got {found(array)}: multiply them by the scale that they "
            "were quantized with, and store them as float16"
        )
    if array.dtype.kind != "f":
        raise InputError(f"{file} must be float32 or float16 features, got {found(array)}")


def check_not_empty(file: Path, lengths: NDArray[np.int64]) -> None:
    """InputError if an image has no regions, naming the first of them."""
    empty = np.flatnonzero(lengths == 0)
    if len(empty):
        raise InputError(
            f"{file}: every image must have a region, but {len(empty)} have none (the first: image {empty[0]}): "
            + _NO_REGION
        )


def check_size(file: Path | str, images: int, image_bytes: int) -> None:
    """InputError for numbers that only a damaged file can claim."""
    if images > MAX_IMAGES or image_bytes > MAX_IMAGE_BYTES:
        raise InputError(
            f"{file}: there may be at most {MAX_IMAGES:,} images of {MAX_IMAGE_BYTES:,} bytes, got {images:,} of "
            f"{image_bytes:,}: the file is damaged"
        )


def one_width(file: Path, widths: set[int]) -> int:
    """The one width of all images; InputError where they differ."""
    if len(widths) > 1:
        raise InputError(f"{file}: all images must have features of one width, got {sorted(widths)}")
    return widths.pop()


def _unmap_pages(array: Any) -> None:
    """Let go of the pages of a mapped file that were read, so that memory does not hold the features of a whole split.

    They stay in the system's cache of files. Views of the array stay valid: what they need is mapped again.
    """
    while isinstance(array, np.ndarray):
        array = array.base
    if isinstance(array, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        array.madvise(mmap.MADV_DONTNEED)


def found(array: Any) -> str:
    """Dtype and shape of an array, for a message."""
    return f"{array.dtype} {list(array.shape)}"
