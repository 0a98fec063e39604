"""Region features on disk, in whichever form they are stored, read row by row.

    SPLIT_ims.npy                   float32 or float16 [N, R, F], every image with R regions
    SPLIT_ims.npz, .h5 or .hdf5
        `features` [T, F] of all images one after the other with `pos_boxes` [N, 2], the first row of each image and the
        row behind its last; or `features` [N, R, F], alone or with `num_boxes` [N]. Boxes may stand beside.
    SPLIT_ims.h5 or .hdf5           a group for each image, named by its id: `features` [r, F]
    SPLIT_ims/ID.npz or ID.npy      a file for each image, named by its id: `features` [r, F], and its boxes
    SPLIT_ims.tsv                   a line for each image, as bottom-up attention writes them, in base64
    SPLIT_ims.lmdb                  a record for each image, named by its id: an .npz, or a pickle of plain values

`image_features`, `feat` and `x` are read as `features`. Beside arrays of all images, `ids` (or `image_ids`, `image_id`)
[N] name them. Such a file, and the last four forms, name their images: SPLIT_ids.txt says which of them are meant and
in which order. Arrays are memory-mapped; those of a compressed .npz are read whole, up to 4 GiB. Numbers of regions may
vary in every form but the first. Nothing but numpy is needed, and h5py for HDF5, lmdb for LMDB. `boxes` says in which
forms boxes are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .boxes import Boxes, why_some_unplaced
from .hdf5 import hdf5_names, open_hdf5
from .layout import SplitFiles
from .lmdb_file import open_lmdb
from .npz import image_boxes, map_npy, map_npz, npz_names, read_image
from .store import RegionStore, chosen, one_width, padded_store, store_of, unread
from .tsv import open_tsv

FORMS = (".npy", ".npz", ".h5", ".hdf5", ".tsv", ".lmdb", "")


def open_store(files: SplitFiles, ids: Sequence[str] | None) -> RegionStore:
    """The one form in which the features of a split are stored.

    Args:
        files: of the split.
        ids: different image ids in order, for the forms that name their images; None where there are none.

    Raises:
        InputError: no features, several forms of them, or a file that is damaged or breaks its form.
    """
    found = [files.features(suffix) for suffix in FORMS if files.features(suffix).exists()]
    if not found:
        raise InputError(
            f"{files.features()} is missing: make it with `chan features DATA -o DATA`, or put features there that "
            "were made elsewhere, float32 [N, regions, features] with N images"
        )
    if len(found) > 1:
        forms = ", ".join(path.name for path in found)
        raise InputError(f"{files.folder} holds {files.features('').name} in several forms ({forms}): keep one")
    (file,) = found
    if _holds_files(file):
        return _folder_store(file, files.ids.name, ids)
    store = _file_store(file, ids)
    return store if ids is None or store.names is None else chosen(store, ids, files.ids.name)


def open_features(path: Path) -> RegionStore:
    """Features by themselves, without a split: images that are named come in the order of the file.

    Args:
        path: a file or folder in one of the forms above, whatever its name before the suffix.

    Raises:
        InputError: it is in no form that is read, holds no image, or is damaged.
        MissingExtra: h5py or lmdb is needed, and not installed.
    """
    if _holds_files(path):
        names = sorted({file.stem for file in path.iterdir() if file.suffix in (".npz", ".npy")})
        if not names:
            raise InputError(f"{path} must hold a .npz or .npy file for each image, got none")
        return _folder_store(path, "the folder", names)
    if path.suffix not in FORMS[:-1] and not path.is_dir():
        raise InputError(f"{path} must end in one of {', '.join(FORMS[:-1])}, or be a folder, got {path.suffix!r}")
    return _file_store(path, hdf5_names(path) if path.suffix in (".h5", ".hdf5") else None)


def _holds_files(path: Path) -> bool:
    """Whether a folder has a file for each image, and is no LMDB."""
    return path.is_dir() and path.suffix != ".lmdb" and not (path / "data.mdb").exists()


def _file_store(file: Path, ids: Sequence[str] | None) -> RegionStore:
    if file.suffix == ".lmdb" or file.is_dir():
        return open_lmdb(file, ids)
    if not file.is_file():
        raise InputError(f"{file} must be a file or a folder, got something else, such as a pipe")
    if file.suffix == ".npy":
        return padded_store(file, map_npy(file), None)
    if file.suffix == ".tsv":
        return open_tsv(file, ids)
    if file.suffix == ".npz":
        return replace(store_of(file, map_npz(file)), left_out=unread(file, npz_names(file)))
    return open_hdf5(file, ids)


def _folder_store(folder: Path, ids_name: str, ids: Sequence[str] | None) -> RegionStore:
    """One .npz or .npy file for each image; each is opened once now, for its shape."""
    if not ids:
        raise InputError(f"{folder} is a folder of one .npz or .npy an image: {ids_name} must name them in order")
    files = [_image_file(folder, ids_name, name) for name in ids]
    shapes, held, left_out = [], [], set[str]()
    for file in files:
        image = read_image(file)
        shapes.append(image.features.shape)
        held.append(image.names)
        left_out |= image.left_out
    width = one_width(folder, {shape[1] for shape in shapes})

    def read(rows: NDArray[np.int64]) -> list[NDArray[Any]]:
        return [read_image(files[row]).features for row in rows]

    def read_boxes(rows: NDArray[np.int64]) -> list[Boxes | None]:
        return [image_boxes(files[row], shapes[row][0]) for row in rows]

    lengths = np.array([shape[0] for shape in shapes], np.int64)
    why = why_some_unplaced(held, read_boxes)
    return RegionStore(folder, len(files), int(lengths.max()), width, read, ids, lengths, read_boxes, left_out, why)


def _image_file(folder: Path, ids_name: str, name: str) -> Path:
    if not name or "/" in name or "\\" in name or "\0" in name:
        raise InputError(f"{folder}: an image id in {ids_name} must be the name of a file, got {name!r}")
    for suffix in (".npz", ".npy"):
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    raise InputError(f"{folder / name}.npz is missing, though {ids_name} names it")
