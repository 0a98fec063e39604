"""Region features in HDF5 files: arrays of all images, or a group for each image.

Only what the file itself holds is read. A link to another file, or an array whose values are stored in one, is refused:
a downloaded file could otherwise name any file of this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, reason_of
from ..extras import needs
from .boxes import BOX_NAMES, SIZE_NAMES, Boxes, boxes_of, why_some_unplaced
from .store import (
    FEATURE_NAMES,
    NEEDED,
    OF_ONE_IMAGE,
    RegionStore,
    check_image,
    feature_name,
    one_width,
    store_of,
    unread,
)

T = TypeVar("T")


def open_hdf5(file: Path, ids: Sequence[str] | None) -> RegionStore:
    """The store of an HDF5 file.

    Args:
        file: its features are `features` with `pos_boxes` or `num_boxes`, or one group or array [r, F] for each image.
        ids: images in order, for a file that names its images.

    Raises:
        InputError: the file is damaged or refers to another file, or an image that `ids` names is not in it.
        MissingExtra: h5py is not installed.
    """
    with needs("h5py", f"reading {file}"):
        import h5py

    with _damage(file):
        opened = h5py.File(file, "r")
        names = list(opened)
        if any(name in names for name in FEATURE_NAMES):
            wanted = [name for name in (*FEATURE_NAMES, *NEEDED) if name in names]
            store = store_of(file, {name: _dataset(file, opened, name) for name in wanted})
            boxes = None if store.boxes is None else _guarded(file, store.boxes)
            return replace(store, read=_guarded(file, store.read), boxes=boxes, left_out=unread(file, names))
        if ids is None:
            raise InputError(
                f"{file} has no `features`, and there is no file of image ids that names its groups in order; "
                f"found {names[:9]}"
            )
        shapes, held, left_out = [], [], set[str]()
        for name in ids:
            image = _image(file, opened, name)
            check_image(f"{file}: image {name!r}", image)
            shapes.append((int(image.shape[0]), int(image.shape[1])))
            held.append([*opened[name], *opened[name].attrs] if hasattr(opened[name], "keys") else [])
            if hasattr(opened[name], "keys"):
                left_out |= unread(file, list(opened[name]), OF_ONE_IMAGE)
        width = one_width(file, {width for _, width in shapes})

        def read(rows: NDArray[np.int64]) -> list[NDArray[Any]]:
            return [np.asarray(_image(file, opened, ids[row])[()]) for row in rows]

        def read_boxes(rows: NDArray[np.int64]) -> list[Boxes | None]:
            return [_group_boxes(file, opened, ids[row], shapes[row][0]) for row in rows]

        lengths = np.array([regions for regions, _ in shapes], np.int64)
        reads = _guarded(file, read), _guarded(file, read_boxes)
        why = why_some_unplaced(held, reads[1])
        return RegionStore(file, len(ids), int(lengths.max()), width, reads[0], ids, lengths, reads[1], left_out, why)


def _image(file: Path, opened: Any, name: str) -> Any:
    """The features of one image: an array of that name, or the array in a group of that name."""
    if "/" in name or name not in opened:
        raise InputError(f"{file} has no group of the image id {name!r}")
    item = _own(file, opened, name)
    if not hasattr(item, "keys"):
        return _dataset(file, opened, name)
    return _dataset(file, item, feature_name(f"{file}: the group {name!r}", list(item)))


def _group_boxes(file: Path, opened: Any, name: str, regions: int) -> Boxes | None:
    """The boxes of an image's group, where it has them and the picture's size."""
    item = _own(file, opened, name)
    if not hasattr(item, "keys"):
        return None
    held = {key: _dataset(file, item, key)[()] for key in (*BOX_NAMES, *SIZE_NAMES) if key in item}
    held |= {key: item.attrs[key] for key in SIZE_NAMES if key in item.attrs}
    return boxes_of(f"{file}: image {name!r}", held, regions)


def hdf5_names(file: Path) -> list[str] | None:
    """The image ids in a file that has a group or array for each image; None for arrays of all images.

    Raises:
        InputError: the file is damaged.
        MissingExtra: h5py is not installed.
    """
    with needs("h5py", f"reading {file}"):
        import h5py
    with _damage(file), h5py.File(file, "r") as opened:
        names = list(opened)
    return None if any(name in names for name in FEATURE_NAMES) else names


def _dataset(file: Path, group: Any, name: str) -> Any:
    """A dataset whose values lie in the file itself."""
    import h5py

    item = _own(file, group, name)
    if not isinstance(item, h5py.Dataset):
        raise InputError(f"{file}: {name} must be an array, got a group")
    if item.is_virtual or item.external:
        raise InputError(f"{file}: {name} is stored in another file: copy it into this one")
    return item


def _own(file: Path, group: Any, name: str) -> Any:
    """The item of that name, unless it is a link: a soft link may lead through a link to another file."""
    import h5py

    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise InputError(f"{file}: {name} is a link, perhaps to another file: copy what it points to into this one")
    return group[name]


def _guarded(file: Path, read: Callable[[NDArray[np.int64]], list[T]]) -> Callable[[NDArray[np.int64]], list[T]]:
    def guarded(rows: NDArray[np.int64]) -> list[T]:
        with _damage(file):
            return read(rows)

    return guarded


@contextmanager
def _damage(file: Path) -> Iterator[None]:
    """What damage makes h5py raise (OSError, RuntimeError, KeyError, TypeError, MemoryError ...) as an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{file} cannot be read as HDF5: {reason_of(error)}") from error
