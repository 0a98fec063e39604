"""Compute the region features of a data folder that `chan data` wrote: of every split, in the order of its ids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..runtime.counts import counted
from ..runtime.data.captions import read_ids
from ..runtime.data.layout import SPLITS, SplitFiles
from ..runtime.data.regions import FORMS, open_store
from ..runtime.errors import InputError
from .backbones.base import Backbone
from .features import Encoder


@dataclass(frozen=True)
class SplitPictures:
    """The pictures of one split.

    Attributes:
        files: of the split.
        pictures: files of the pictures, in the order in which their ids first appear.
    """

    files: SplitFiles
    pictures: list[Path]


def pictures_of(data: Path) -> list[SplitPictures]:
    """The pictures of each split of DATA that has captions.

    Raises:
        InputError: DATA has no split with ids, or an id without a picture in id_mapping.json.
    """
    found = []
    for split in SPLITS:
        files = SplitFiles.below(data, split)
        if not files.captions.is_file() or not files.ids.is_file():
            continue
        mapping = files.read_id_mapping()
        ids = list(dict.fromkeys(read_ids(files.ids)))
        unnamed = next((image_id for image_id in ids if image_id not in mapping), None)
        if unnamed is not None:
            raise InputError(
                f"{files.id_mapping} must name the picture of every id of {split}, got none for {unnamed!r}"
            )
        found.append(SplitPictures(files, [mapping[image_id] for image_id in ids]))
    if not found:
        raise InputError(f"{data} has no split with captions and ids: make them with `chan data`")
    return found


def write_data_features(
    splits: list[SplitPictures], force: bool = False, backbone: Backbone | None = None
) -> Iterator[int]:
    """Write DATA/precomp/SPLIT_ims.npy of each split, or .npz where the backbone's regions have boxes.

    A split whose features have a row for each picture is left as it is, so the same call continues after an
    interruption.

    Args:
        splits: as `pictures_of` returns them.
        force: replace features that are there.
        backbone: None for efficientnet-lite0.

    Yields:
        Number of pictures finished since the last time.

    Raises:
        InputError: a picture cannot be read, or features that are there are not of these pictures.
    """
    encoder = None
    form = ".npz" if backbone is not None and backbone.preprocess.grid is None else ".npy"
    for split in splits:
        file, count = split.files.features(form), len(split.pictures)
        there = [path for path in map(split.files.features, FORMS) if path.exists()]
        if there and not force:
            rows = open_store(split.files, read_ids(split.files.ids)).count
            if rows != count:
                raise InputError(
                    f"{there[0]} has {counted(rows, 'row')} for {counted(count, 'picture')}: replace it with --force"
                )
            yield count
            continue
        if there not in ([], [file]):
            raise InputError(f"{there[0]} is not {file.name}, which would stand beside it: remove it first")
        encoder = encoder or Encoder(backbone)
        yield from encoder.encode_to(file, split.pictures, count)
