"""Data folders as sources of rows, and `open_source`, which recognizes what paths are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..data.images import CaptionedImages
from ..data.layout import find_split, is_data_folder
from ..errors import InputError
from ..matcher import Matcher
from .identity import Origin, Scope
from .sources import Encoded, Source, caption_encoder, each_row, picture_source, text_source


def open_source(paths: Sequence[str | Path], split: str = "test", *, captions: bool = False) -> Source:
    """The source that `paths` are: a data folder, pictures and folders of pictures, or with `captions` text files.

    Args:
        paths: one data folder in the precomp layout, or any number of pictures, folders and text files.
        split: of a data folder.
        captions: its captions, or the lines of text files, rather than images.

    Raises:
        InputError: several data folders, no picture, no line of text.
    """
    data = [path for path in map(Path, paths) if is_data_folder(path)]
    if data:
        if len(paths) > 1:
            raise InputError(f"sources: a data folder must stand alone, got {len(paths)} sources")
        return _data_captions(data[0], split) if captions else _data_images(data[0], split)
    return text_source(paths) if captions else picture_source(paths)


def _data_images(path: Path, split: str) -> Source:
    data = CaptionedImages.open(path, split)
    files = data.pictures()
    texts: list[list[str]] = [[] for _ in range(data.num_images)]
    for caption, image in zip(data.captions, data.image_of_caption, strict=True):
        texts[image].append(caption)
    metadata: list[dict[str, Any]] = []
    rows = data.image_rows.tolist()
    for position, row in enumerate(rows):
        metadata.append({"split": split, "row": row, "captions": texts[position]})
        if data.image_ids is not None:
            metadata[-1]["image_id"] = data.image_ids[position]
        file = files[position]
        if file is not None:
            metadata[-1]["path"] = os.path.realpath(file)
    ids = [f"{split}/{row}" for row in rows]
    encode_rows = each_row(ids, lambda matcher, rows: matcher.encode_images(*data.regions(rows)))

    def encode(matcher: Matcher, rows: Sequence[int]) -> Encoded:
        data.check_bundle(matcher.manifest, "the bundle")
        encoded = encode_rows(matcher, rows)
        return replace(encoded, boxes=data.boxes(encoded.rows))

    return Source(
        "images",
        ids=ids,
        metadata=metadata,
        encode=encode,
        queries=data.captions,
        skipped=data.skipped,
        origins=_origins(path, split, rows, lambda position: _regions_digest(data, position)),
        whole=[Scope(path.resolve(), f"{split}/")],
    )


def _data_captions(path: Path, split: str) -> Source:
    data = CaptionedImages.open(path, split)
    rows, images = data.caption_rows.tolist(), data.image_rows[data.image_of_caption].tolist()
    ids = [f"{split}/{row}" for row in rows]
    return Source(
        "captions",
        ids=ids,
        metadata=[
            {"caption": caption, "split": split, "row": image}
            for caption, image in zip(data.captions, images, strict=True)
        ],
        encode=caption_encoder(ids, data.captions),
        skipped=data.skipped,
        origins=_origins(path, split, rows, lambda place: hashlib.sha256(data.captions[place].encode()).hexdigest()),
        whole=[Scope(path.resolve(), f"{split}/")],
    )


def _origins(path: Path, split: str, rows: Sequence[int], digest: Callable[[int], str]) -> list[Origin]:
    """Where rows of a split come from: all of them from the split's files together; `digest` is given positions."""
    layout = find_split(path, split)
    tops = [*layout.folder.glob(f"{split}_*"), *([] if layout.annotations is None else [layout.annotations])]
    found = [file for top in tops for file in (top, *top.rglob("*"))]  # features may be a folder
    files = [file.stat() for file in found if file.is_file()]
    size, mtime_ns = sum(file.st_size for file in files), max(file.st_mtime_ns for file in files)
    root = path.resolve()
    return [
        Origin(root, f"{split}/{row}", None, size, mtime_ns, partial(digest, position))
        for position, row in enumerate(rows)
    ]


def _regions_digest(data: CaptionedImages, row: int) -> str:
    """SHA-256 of an image's regions, of their number, and of their boxes where these are known."""
    regions, lengths = data.regions([row])
    (boxes,) = data.boxes([row])
    parts = [lengths, np.ascontiguousarray(regions), *([] if boxes is None else [boxes])]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
