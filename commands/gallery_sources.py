"""What `chan index` and `chan search` can encode: pictures, a data folder's images or captions, lines of text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..chan_ref.data import PrecompSplit
from ..runtime.embeddings import Embeddings
from ..runtime.errors import InputError
from ..runtime.matcher import Matcher
from ..runtime.pictures.load import find_pictures


@dataclass(frozen=True)
class Source:
    """Rows that can be encoded.

    Attributes:
        ids: of the rows, unique.
        metadata: of each row.
        encode: a matcher and row numbers -> their embeddings.
        queries: captions that belong to image rows, to measure fast search with; empty where there are none.
    """

    ids: list[str]
    metadata: list[dict[str, Any]]
    encode: Callable[[Matcher, Sequence[int]], Embeddings]
    queries: list[str]


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
    return _text_lines(paths) if captions else pictures(paths)


def pictures(paths: Sequence[Path]) -> Source:
    """Picture files, and folders of them; a row's id is its path."""
    files = [path.resolve() for path in find_pictures(paths)]
    return Source(
        ids=[str(file) for file in files],
        metadata=[{"path": str(file)} for file in files],
        encode=lambda matcher, rows: matcher.encode_pictures([files[row] for row in rows]),
        queries=[],
    )


def _is_data(path: Path) -> bool:
    """Whether a folder is in the precomp layout: its captions lie in it, or in its precomp folder."""
    return path.is_dir() and any(any(path.glob(f"{folder}*_caps.txt")) for folder in ("", "*precomp/"))


def _data_images(path: Path, split: str) -> Source:
    data = PrecompSplit.open(path, split)  # type: ignore[arg-type] - it names the splits there are
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
    return Source(
        ids=[f"{split}/{row}" for row in range(data.num_images)],
        metadata=metadata,
        encode=lambda matcher, rows: matcher.encode_images(*data.regions(rows)),
        queries=data.captions,
    )


def _data_captions(path: Path, split: str) -> Source:
    data = PrecompSplit.open(path, split)  # type: ignore[arg-type] - it names the splits there are
    return Source(
        ids=[f"{split}/{row}" for row in range(len(data.captions))],
        metadata=[
            {"caption": caption, "split": split, "row": int(image)}
            for caption, image in zip(data.captions, data.image_of_caption, strict=True)
        ],
        encode=lambda matcher, rows: matcher.encode_texts([data.captions[row] for row in rows]),
        queries=[],
    )


def _text_lines(paths: Sequence[Path]) -> Source:
    lines = list(dict.fromkeys(line for path in paths for line in read_lines(path)))
    return Source(
        ids=lines,
        metadata=[{"caption": line} for line in lines],
        encode=lambda matcher, rows: matcher.encode_texts([lines[row] for row in rows]),
        queries=[],
    )


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that hold something."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} must be a text file in UTF-8: {error}") from error
    if not any(lines):
        raise InputError(f"{path} must hold at least one caption, got none")
    return [line for line in lines if line]


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
