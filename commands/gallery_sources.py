"""What `chan index` can encode: pictures, a data folder's images or captions, lines of text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..chan_ref.data import PrecompSplit
from ..runtime.errors import InputError
from ..runtime.matcher import Matcher
from ..runtime.sources import Encoded, Source, caption_encoder, each_row, picture_source, text_source


def open_source(paths: Sequence[Path], split: str = "test", *, captions: bool = False) -> Source:
    """Recognize what PATHS are.

    Raises:
        InputError: several data folders, no picture, no line of text.
    """
    data = [path for path in paths if _is_data(path)]
    if data:
        if len(paths) > 1:
            raise InputError(f"sources: a data folder must stand alone, got {len(paths)} sources")
        return _data_captions(data[0], split) if captions else _data_images(data[0], split)
    return text_source(paths) if captions else picture_source(paths)


def _is_data(path: Path) -> bool:
    """Whether a folder is in the precomp layout: its captions lie in it, or in its precomp folder."""
    return path.is_dir() and any(any(path.glob(f"{folder}*_caps.txt")) for folder in ("", "*precomp/"))


def _data_images(path: Path, split: str) -> Source:
    data = PrecompSplit.open(path, split)  # type: ignore[arg-type]  # it names the splits there are
    names = _mapped_files(path, data.image_ids)
    texts: list[list[str]] = [[] for _ in range(data.num_images)]
    for caption, image in zip(data.captions, data.image_of_caption, strict=True):
        texts[image].append(caption)
    metadata: list[dict[str, Any]] = []
    for row in range(data.num_images):
        metadata.append({"split": split, "row": row, "captions": texts[row]})
        if data.image_ids is not None:
            metadata[-1]["image_id"] = data.image_ids[row]
            if data.image_ids[row] in names:
                metadata[-1]["path"] = names[data.image_ids[row]]
    ids = [f"{split}/{row}" for row in range(data.num_images)]
    encode_rows = each_row(ids, lambda matcher, rows: matcher.encode_images(*data.regions(rows)))

    def encode(matcher: Matcher, rows: Sequence[int]) -> Encoded:
        data.check_width(matcher.manifest.region_dim, "the bundle")
        return encode_rows(matcher, rows)

    return Source(
        "images",
        ids=ids,
        metadata=metadata,
        encode=encode,
        queries=data.captions,
    )


def _data_captions(path: Path, split: str) -> Source:
    data = PrecompSplit.open(path, split)  # type: ignore[arg-type]  # it names the splits there are
    ids = [f"{split}/{row}" for row in range(len(data.captions))]
    return Source(
        "captions",
        ids=ids,
        metadata=[
            {"caption": caption, "split": split, "row": int(image)}
            for caption, image in zip(data.captions, data.image_of_caption, strict=True)
        ],
        encode=caption_encoder(ids, data.captions),
    )


def _mapped_files(path: Path, ids: Sequence[str] | None) -> Mapping[str, str]:
    """Picture files by image id, as DATA/id_mapping.json says, those that exist."""
    mapping = path / "id_mapping.json"
    if ids is None or not mapping.is_file():
        return {}
    try:
        raw = json.loads(mapping.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{mapping} must be JSON: {error}") from error
    files = {id: path / str(name) for id, name in raw.items()}
    return {id: str(file.resolve()) for id, file in files.items() if file.is_file()}
