"""Captions and splits in Karpathy's JSON files (dataset_coco.json, dataset_flickr30k.json), beside region features.

    {"images": [{"split": "test", "filename": "1.jpg", "cocoid": 1, "sentences": [{"raw": "A dog."}, ...]}, ...]}

Every sentence is a caption, so images may have different numbers of them (COCO: five to seven; the published protocol
keeps the first five of each). `dev` is the JSON's `val`, `test` and `testall` its `test`. `train` is `train` with
`restval`, as published, unless the features have exactly as many images as `train` alone. An image's id is its
`cocoid`, otherwise its file name without the suffix.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..counts import counted
from ..errors import InputError, reason_of
from .captions import Pairing
from .store import RegionStore

_MAX_BYTES = 2 << 30
_SPLITS = {"train": ("train", "restval"), "dev": ("val",), "test": ("test",), "testall": ("test",)}


@dataclass(frozen=True)
class Annotated:
    """One image of the JSON file: its id, its part of the data set as the file calls it, and its captions."""

    image_id: str
    part: str
    captions: list[str]


def read_annotations(file: Path, split: str) -> list[Annotated]:
    """The images of a split in the order of the file, those without captions left out.

    Raises:
        InputError: the file is not such a JSON file, has no image of that split, or names one twice.
    """
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise InputError(f"{file} must be at most {_MAX_BYTES:,} bytes, got {file.stat().st_size:,}")
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{file} must be JSON: {reason_of(error)}") from error
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise InputError(f'{file} must be a JSON object with a list "images", as Karpathy\'s splits have it')
    found = [_annotated(f"{file}: images[{number}]", item) for number, item in enumerate(images)]
    chosen = [image for image in found if image.part in _SPLITS[split] and image.captions]
    if not chosen:
        parts = sorted({image.part for image in found})
        raise InputError(f"{file} has no captions of {' or '.join(_SPLITS[split])}, only images of {parts[:9]}")
    (name, count), *_ = Counter(image.image_id for image in chosen).most_common(1)
    if count > 1:
        raise InputError(f"{file} must have each image once, got {name!r} {count} times")
    return chosen


def pair_annotated(
    images: Sequence[Annotated], ids: Sequence[str] | None, store: RegionStore, file: Path
) -> tuple[list[str], Pairing]:
    """The captions, and which stored image each belongs to.

    Args:
        images: of the split.
        ids: lines of SPLIT_ids.txt: the images in the order of the features; None for the order of the file.
        store: the features.
        file: for messages.

    Raises:
        InputError: images and features do not fit.
    """
    if len(images) != store.count and store.names is None and ids is None:
        images = [image for image in images if image.part == "train"] or images
    order = [image.image_id for image in images] if ids is None else list(ids)
    rows = {name: row for row, name in enumerate(order)}
    missing = next((image.image_id for image in images if image.image_id not in rows), None)
    if len(order) != store.count or len(rows) != len(order) or missing is not None:
        unnamed = "" if missing is None else f", without {missing!r}"
        raise InputError(
            f"{file} has {counted(len(images), 'image')} of this split, {store.file} has {store.count}, and "
            f"{len(rows)} are "
            f"named{unnamed}: they must be the same"
        )
    captions = [caption for image in images for caption in image.captions]
    owner = np.repeat(np.arange(len(images)), [len(image.captions) for image in images])
    store_rows = np.array([rows[image.image_id] for image in images], np.int64)
    return captions, Pairing(store_rows, owner, [image.image_id for image in images])


def _annotated(where: str, item: Any) -> Annotated:
    if not isinstance(item, dict):
        raise InputError(f"{where} must be an object, got {type(item).__name__}")
    name, part, sentences = item.get("cocoid"), item.get("split"), item.get("sentences")
    if name is None and isinstance(item.get("filename"), str):
        name = Path(item["filename"]).stem
    if isinstance(name, bool) or not isinstance(name, int | str):
        raise InputError(f"{where} must have a cocoid or a filename, got {name!r}")
    if not isinstance(part, str) or not isinstance(sentences, list):
        raise InputError(f"{where} must have a split and a list of sentences")
    captions = []
    for number, sentence in enumerate(sentences):
        raw = sentence.get("raw") if isinstance(sentence, dict) else None
        if not isinstance(raw, str):
            raise InputError(f"{where}: sentences[{number}] must have its text as `raw`")
        captions.append(raw.strip())
    return Annotated(str(name), part, captions)
