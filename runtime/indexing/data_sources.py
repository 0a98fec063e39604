"""Data folders as sources of rows, and `open_source`, which recognizes what paths are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ..data.images import CaptionedImages
from ..data.layout import find_split, is_data_folder
from ..embeddings import Embeddings
from ..errors import InputError
from ..files import is_utf8
from ..matcher import Matcher
from .identity import Origin, Scope
from .sources import Encode, Encoded, Source, caption_encoders, each_row, picture_source, text_source


def open_source(paths: Sequence[str | Path], split: str = "test", *, captions: bool = False) -> Source:
    """The source that `paths` are: a data folder, pictures and folders of pictures, or with `captions` text files.

    Args:
        paths: one data folder in the precomp layout, or any number of pictures, folders and text files.
        split: of a data folder.
        captions: its captions, or the lines of text files, rather than images.

    Raises:
        InputError: several data folders, or one whose path is not UTF-8, no picture, no line of text.
    """
    data = [path for path in map(Path, paths) if is_data_folder(path)]
    if data:
        if len(paths) > 1:
            raise InputError(f"sources: a data folder must stand alone, got {len(paths)} sources")
        if not is_utf8(data[0].resolve()):  # a gallery keeps it as text
            raise InputError(f"{data[0]}: the path of a data folder must be UTF-8 to be indexed: rename it")
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
    opened = _Opened(path, split, data)
    return Source(
        "images",
        ids=ids,
        metadata=metadata,
        encode=_image_encoder(opened, ids, range(len(ids))),
        encode_only=lambda chosen: _image_encoder(opened, [ids[row] for row in chosen], list(chosen)),
        queries=data.captions,
        skipped=data.skipped,
        origins=_origins(path, split, rows, opened.regions_digest),
        whole=[Scope(path.resolve(), f"{split}/")],
        notes=_lost_boxes(data),
    )


def _lost_boxes(data: CaptionedImages) -> list[str]:
    """Boxes that lie with the features and do not come into the gallery."""
    notes = [f"{data.source}: its boxes are left out: {data.unplaced}."] if data.unplaced else []
    unread = [] if data.files is None else data.files.box_files()
    if unread and data.files is not None:
        form = data.files.features(".npz").name
        notes.append(
            f"{', '.join(map(str, unread))}: not read. Boxes belong beside the features, in {form}: `features` with "
            "`boxes` as left, top, width and height in fractions of the picture, or in pixels with `image_w` and "
            "`image_h` (docs/backbones.md)."
        )
    return notes


def _data_captions(path: Path, split: str) -> Source:
    data = CaptionedImages.open(path, split)
    rows, images = data.caption_rows.tolist(), data.image_rows[data.image_of_caption].tolist()
    ids = [f"{split}/{row}" for row in rows]
    encode, encode_only = caption_encoders(ids, data.captions)
    return Source(
        "captions",
        ids=ids,
        metadata=[
            {"caption": caption, "split": split, "row": image}
            for caption, image in zip(data.captions, images, strict=True)
        ],
        encode=encode,
        encode_only=encode_only,
        skipped=data.skipped,
        origins=_origins(path, split, rows, _Opened(path, split, data).caption_digest),
        whole=[Scope(path.resolve(), f"{split}/")],
    )


@dataclass(frozen=True)
class _Opened:
    """A split that is open. Another process that gets it opens the split for itself, once."""

    path: Path
    split: str
    data: CaptionedImages

    def __reduce__(self) -> tuple[Callable[[Path, str], _Opened], tuple[Path, str]]:
        return _open_once, (self.path.absolute(), self.split)

    def regions_digest(self, position: int) -> str:
        """SHA-256 of an image's regions, of their number, and of their boxes where these are known."""
        regions, lengths = self.data.regions([position])
        (boxes,) = self.data.boxes([position])
        parts = [lengths, np.ascontiguousarray(regions), *([] if boxes is None else [boxes])]
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()

    def caption_digest(self, position: int) -> str:
        """SHA-256 of a caption."""
        return hashlib.sha256(self.data.captions[position].encode()).hexdigest()


@cache
def _open_once(path: Path, split: Any) -> _Opened:
    return _Opened(path, split, CaptionedImages.open(path, split))


def _image_encoder(opened: _Opened, ids: Sequence[str], positions: Sequence[int]) -> Encode:
    """The `encode` of a source whose rows are the images of a split at these positions."""

    def regions(matcher: Matcher, rows: Sequence[int]) -> Embeddings:
        return matcher.encode_images(*opened.data.regions([positions[row] for row in rows]))

    encode_rows = each_row(ids, regions)

    def encode(matcher: Matcher, rows: Sequence[int]) -> Encoded:
        opened.data.check_bundle(matcher.manifest, "the bundle")
        encoded = encode_rows(matcher, rows)
        return replace(encoded, boxes=opened.data.boxes([positions[row] for row in encoded.rows]))

    return encode


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
