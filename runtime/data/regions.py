"""Region features on disk, in whichever form they lie there, read row by row.

    SPLIT_ims.npy                   float32 or float16 [N, R, F], every image with R regions
    SPLIT_ims.npz (uncompressed) or SPLIT_ims.h5 / .hdf5
        `features` (or `image_features`) [T, F] of all images one after the other with `pos_boxes` [N, 2], each image's
        first row and the row behind its last; or `features` [N, R, F] with `num_boxes` [N]. Boxes may stand beside.
    SPLIT_ims/ID.npz
        one file an image, named by SPLIT_ids.txt: `features` or `x` [r, F], and its boxes.

The last three are for numbers of regions that vary, as bottom-up detectors give them. Nothing but numpy is needed (and
h5py for HDF5).
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..extras import needs
from .layout import SplitFiles

_FEATURE_NAMES = ("features", "image_features", "x")


@dataclass(frozen=True)
class RegionStore:
    """Images on disk: how many, their widths, and a reader that gives [r, F] for each row asked for."""

    file: Path
    count: int
    max_regions: int
    region_dim: int
    read: Callable[[NDArray[np.int64]], list[NDArray[Any]]]


_FORMS = (".npy", ".npz", ".h5", ".hdf5", "")


def open_store(files: SplitFiles, ids: list[str] | None) -> RegionStore:
    """The one form in which this split's features are stored."""
    found = [files.features(suffix) for suffix in _FORMS if files.features(suffix).exists()]
    if not found:
        raise InputError(f"{files.features()} is missing: expected float32 [N, regions, features], N = captions / 5")
    if len(found) > 1:
        forms = ", ".join(path.name for path in found)
        raise InputError(f"{files.folder} holds {files.features('').name} in several forms ({forms}): keep one")
    (file,) = found
    if file.is_dir():
        return _folder_store(file, ids)
    if file.suffix == ".npy":
        try:
            array = np.lib.format.open_memmap(file, "r")  # np.load takes what it does not know for a pickle
        except Exception as error:  # numpy has no common base for what damage makes it raise
            raise InputError(f"{file} cannot be read as a numpy array of numbers: {error}") from error
        return _padded_store(file, array, None)
    members = _map_npz(file) if file.suffix == ".npz" else _open_hdf5(file)
    name = next((name for name in _FEATURE_NAMES if name in members), None)
    if name is None:
        raise InputError(f"{file} has no `features`: expected [T, F] with pos_boxes [N, 2], found {sorted(members)}")
    if "pos_boxes" in members:
        return _flat_store(file, members[name], np.asarray(members["pos_boxes"]))
    counts = np.asarray(members["num_boxes"]).reshape(-1) if "num_boxes" in members else None
    return _padded_store(file, members[name], counts)


def _padded_store(file: Path, array: Any, counts: NDArray[Any] | None) -> RegionStore:
    """[N, R, F], of whose R regions the first counts[i] are real (all, where counts is None)."""
    if array.ndim != 3 or array.dtype.kind != "f" or 0 in array.shape:
        raise InputError(f"{file} must be float32 [N, regions, features], none of them 0, got {_found(array)}")
    num_images, max_regions, region_dim = (int(size) for size in array.shape)
    if counts is not None and counts.dtype.kind not in "iu":
        raise InputError(f"{file}: num_boxes must be integers [N], got {_found(counts)}")
    lengths = np.full(num_images, max_regions) if counts is None else counts.astype(np.int64)
    if lengths.shape != (num_images,) or lengths.min() < 1 or lengths.max() > max_regions:
        raise InputError(
            f"{file}: num_boxes must be one number from 1 to {max_regions} for each of {num_images} images"
        )

    def read(rows: NDArray[np.int64]) -> list[NDArray[Any]]:
        return [array[int(row)][: lengths[row]] for row in rows]

    return RegionStore(file, num_images, int(lengths.max()), region_dim, read)


def _flat_store(file: Path, array: Any, spans: NDArray[Any]) -> RegionStore:
    """[T, F] with each image's rows spans[i, 0]:spans[i, 1]."""
    if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        raise InputError(f"{file}: features beside pos_boxes must be float32 [T, F], got {_found(array)}")
    if spans.ndim != 2 or spans.shape[1] != 2 or not len(spans) or spans.dtype.kind not in "iu":
        raise InputError(f"{file}: pos_boxes must be integers [N, 2], got {_found(spans)}")
    spans = spans.astype(np.int64)
    if spans.min() < 0 or spans.max() > array.shape[0] or (spans[:, 0] >= spans[:, 1]).any():
        raise InputError(f"{file}: pos_boxes must be row ranges first < last within the {array.shape[0]} feature rows")

    def read(rows: NDArray[np.int64]) -> list[NDArray[Any]]:
        return [array[int(spans[row, 0]) : int(spans[row, 1])] for row in rows]

    return RegionStore(file, len(spans), int((spans[:, 1] - spans[:, 0]).max()), int(array.shape[1]), read)


def _folder_store(folder: Path, ids: list[str] | None) -> RegionStore:
    """One .npz an image; only the array headers are read now."""
    if not ids:
        raise InputError(
            f"{folder} is a folder of one .npz an image: {folder.name[:-4]}_ids.txt must name them in order"
        )
    files = [folder / f"{name}.npz" for name in ids]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise InputError(f"{missing} is missing, though {folder.name[:-4]}_ids.txt names it")
    shapes = [_one_image(file).shape for file in files]
    widths = {shape[1] for shape in shapes}
    if len(widths) > 1:
        raise InputError(f"{folder}: all images must have features of one width, got {sorted(widths)}")

    def read(rows: NDArray[np.int64]) -> list[NDArray[Any]]:
        return [_one_image(files[row]) for row in rows]

    return RegionStore(folder, len(files), max(shape[0] for shape in shapes), widths.pop(), read)


def _one_image(file: Path) -> NDArray[Any]:
    """`features` or `x` [r, F] of one image's .npz, compressed or not."""
    if not zipfile.is_zipfile(file):  # np.load would take it for something else, and advise to unpickle it
        raise InputError(f"{file} is not an .npz archive, or was cut off: write it again with numpy.savez")
    try:
        with np.load(file, allow_pickle=False) as members:
            name = next((name for name in _FEATURE_NAMES if name in members), None)
            if name is None:
                raise InputError(f"{file} has neither `features` nor `x` [r, F]; it has {sorted(members)}")
            array: NDArray[Any] = members[name]
    except InputError:
        raise
    except Exception as error:  # as in `open_store`
        raise InputError(f"{file} cannot be read: {error}") from error
    if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        raise InputError(f"{file}: features must be float32 [r, F], neither 0, got {_found(array)}")
    return array


def _map_npz(file: Path) -> dict[str, Any]:
    """The arrays of an uncompressed .npz, memory-mapped where they lie in the archive."""
    arrays: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(file) as archive, open(file, "rb") as raw:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED:
                    raise InputError(f"{file} is compressed and cannot be memory-mapped: write it with numpy.savez")
                # A member's data start behind its local header, whose name and extra field lengths are at byte 26.
                raw.seek(info.header_offset + 26)
                name_size, extra_size = np.frombuffer(raw.read(4), dtype="<u2")
                raw.seek(info.header_offset + 30 + int(name_size) + int(extra_size))
                version = np.lib.format.read_magic(raw)
                read_header = np.lib.format.read_array_header_1_0
                if version != (1, 0):
                    read_header = np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read_header(raw)
                if dtype.hasobject:
                    raise InputError(f"{file}: {info.filename} holds Python objects, which are never loaded")
                order: Literal["F", "C"] = "F" if fortran else "C"
                name = info.filename.removesuffix(".npy")
                arrays[name] = np.memmap(file, dtype, "r", offset=raw.tell(), shape=shape, order=order)
    except InputError:
        raise
    except Exception as error:  # as in `open_store`
        raise InputError(f"{file} cannot be read as an .npz archive: {error}") from error
    return arrays


def _open_hdf5(file: Path) -> dict[str, Any]:
    """The datasets at the root of an HDF5 file, read from disk as they are indexed."""
    with needs("h5py", f"reading {file}"):
        import h5py
    try:
        opened = h5py.File(file, "r")
    except OSError as error:
        raise InputError(f"{file} cannot be read as HDF5: {error}") from error
    return {name: item for name, item in opened.items() if isinstance(item, h5py.Dataset)}


def _found(array: Any) -> str:
    return f"{array.dtype} {list(array.shape)}"
