"""Region features in any form that is read become one .npz file, which is read without being loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import write_file
from ..progress import Progress
from .flat import FlatWriter
from .regions import open_features
from .vector_file import number_type

_AT_ONCE = 64


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote.

    Attributes:
        file: the features.
        images: how many images they are of.
        regions: how many regions these have in all.
        boxed: whether each region has its box.
        left_out: names of arrays of the source that are neither features, nor boxes, nor ids.
        unplaced: why boxes of the source are left out; empty where it has none, or none are.
        rounded: types of numbers of the source that were rounded to float32, such as float64.
    """

    file: Path
    images: int
    regions: int
    boxed: bool
    left_out: tuple[str, ...] = ()
    rounded: tuple[str, ...] = ()
    unplaced: str = ""


def convert_features(
    source: Path, out: Path, force: bool = False, progress: Progress = lambda done, total: None
) -> Converted:
    """Write the features of SOURCE to OUT/ims.npz, as `regions` reads it, and the image ids to OUT/ids.txt.

    Images go through one after the other. As the features of a split they are DATA/precomp/SPLIT_ims.npz and
    SPLIT_ids.txt. Images of a source that names none are numbered.

    Args:
        source: a file or folder in a form that `regions` lists.
        out: folder; created if needed.
        force: replace features that OUT holds.
        progress: called with the images written and the images there are.

    Raises:
        InputError: features are there already, SOURCE is in no form that is read, or damaged, or only some of its
            images have boxes.
        MissingExtra: h5py or lmdb is needed, and not installed.
    """
    file, ids = out / "ims.npz", out / "ids.txt"
    if file.exists() and not force:
        raise InputError(f"{file} already exists: choose another folder, or replace it with --force")
    store = open_features(source)
    names = [str(row) for row in range(store.count)] if store.names is None else list(store.names)
    broken = next((name for name in names if not name or name != name.strip() or len(name.splitlines()) > 1), None)
    if broken is not None:
        raise InputError(f"{source}: an image id must be one line of text, got {broken!r}")
    lengths = np.full(store.count, store.max_regions) if store.lengths is None else store.lengths
    rounded: set[str] = set()
    with FlatWriter(file, lengths, store.region_dim) as writer:
        for start in range(0, store.count, _AT_ONCE):
            rows = np.arange(start, min(start + _AT_ONCE, store.count))
            places = [None] * len(rows) if store.boxes is None else store.boxes(rows)
            for row, features, boxes in zip(rows, store.read(rows), places, strict=True):
                if features.dtype.itemsize > np.dtype(np.float32).itemsize:
                    rounded.add(number_type(features.dtype))
                try:
                    with np.errstate(over="ignore"):  # what overflows is infinite, and refused
                        writer.add(np.asarray(features, np.float32), boxes)
                except InputError as error:
                    reason = str(error).removeprefix(f"{file}: ")
                    raise InputError(f"{source}, image id {names[row]}: {reason}") from error
            progress(min(start + _AT_ONCE, store.count), store.count)
    write_file(ids, "".join(f"{name}\n" for name in names))
    left_out = tuple(sorted(store.left_out))
    return Converted(
        file, store.count, int(lengths.sum()), writer.boxed, left_out, tuple(sorted(rounded)), store.unplaced
    )
