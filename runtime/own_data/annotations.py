"""Captions in JSON files: Karpathy's splits (dataset_coco.json, dataset_flickr30k.json), and COCO's captions_*.json.

{"images": [{"filename": "1.jpg", "split": "test", "sentences": [{"raw": "A dog."}, ...]}, ...]}
{"images": [{"id": 1, "file_name": "1.jpg"}, ...], "annotations": [{"image_id": 1, "caption": "A dog."}, ...]}
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError, reason_of
from ..strict_json import show, unique_keys
from .entries import Entry, Stray, split_named

_MAX_BYTES = 2 << 30


def read_json(file: Path) -> Iterator[Entry | Stray]:
    """The pictures of a JSON file of either form, in its order, and annotations that belong to no picture.

    Raises:
        InputError: the file is neither, or a record breaks its form; the message names the record.
    """
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise InputError(f"{file} must be at most {_MAX_BYTES:,} bytes, got {file.stat().st_size:,}")
        content = json.loads(file.read_bytes().removeprefix(b"\xef\xbb\xbf"), object_pairs_hook=unique_keys)
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{file} must be JSON: {reason_of(error)}") from error
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise InputError(
            f"{file} must be a JSON object with a list \"images\", as Karpathy's splits and COCO's captions have it; "
            "one JSON object on each line is read from a file named .jsonl"
        )
    for number, image in enumerate(images):
        if not isinstance(image, dict):
            raise InputError(f"{file}: images[{number}] must be an object, got {type(image).__name__}")
    annotations = content.get("annotations")
    if isinstance(annotations, list):
        yield from _coco(file, images, annotations)
        return
    for number, image in enumerate(images):
        yield _karpathy(f"{file}: images[{number}]", image)


def _karpathy(where: str, image: dict[str, Any]) -> Entry:
    name, folder, sentences = image.get("filename"), image.get("filepath"), image.get("sentences")
    if not isinstance(name, str) or not isinstance(sentences, list) or not isinstance(folder, str | None):
        got = f"filename {show(name)}, filepath {show(folder)} and sentences {show(sentences)}"
        raise InputError(
            f"{where} must have a filename and a list of sentences, as Karpathy's splits have them, got {got}"
        )
    captions, numbers = [], []
    for number, sentence in enumerate(sentences):
        raw = sentence.get("raw") if isinstance(sentence, dict) else None
        if not isinstance(raw, str):
            raise InputError(f"{where}: sentences[{number}] must have its text as `raw`")
        captions.append(raw)
        numbers.append(sentence.get("sentid"))
    listed = image.get("sentids")
    if listed is not None and (not isinstance(listed, list) or sorted(map(str, listed)) != sorted(map(str, numbers))):
        raise InputError(
            f"{where}: sentids must be those of its sentences, got {listed!r:.80} and {numbers!r:.80}: the captions "
            "may be those of another picture"
        )
    split = image.get("split")
    if not isinstance(split, str | None):
        raise InputError(f"{where}: the split must be text, got {split!r}")
    cocoid = image.get("cocoid")
    return Entry(
        where,
        (f"{folder}/{name}", name) if folder else (name,),
        tuple(captions),
        None if split is None else split_named(split, where),
        None if cocoid is None else _image_id(where, "cocoid", cocoid),
    )


def _coco(file: Path, images: list[dict[str, Any]], annotations: list[Any]) -> Iterator[Entry | Stray]:
    captions: dict[str, list[str]] = {}
    names: dict[str, tuple[str, str]] = {}
    for number, image in enumerate(images):
        where, name = f"{file}: images[{number}]", image.get("file_name")
        image_id = _image_id(where, "id", image.get("id"))
        if not isinstance(name, str):
            raise InputError(f"{where} must have a file_name, got {name!r}")
        if image_id in captions:
            raise InputError(f"{where} must have an id of its own, got {image_id} again")
        captions[image_id], names[image_id] = [], (where, name)
    strays = []
    for number, annotation in enumerate(annotations):
        where = f"{file}: annotations[{number}]"
        if not isinstance(annotation, dict) or not isinstance(annotation.get("caption"), str):
            raise InputError(f"{where} must have a caption: give COCO's file of captions, not that of instances")
        image_id = _image_id(where, "image_id", annotation.get("image_id"))
        if image_id in captions:
            captions[image_id].append(annotation["caption"])
        else:
            strays.append(Stray(where, f"its image_id {image_id} is none of the images"))
    for image_id, (where, name) in names.items():
        yield Entry(where, (name,), tuple(captions[image_id]), image_id=image_id)
    yield from strays


def _image_id(where: str, key: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise InputError(f"{where}: {key} must be a number or text, got {value!r}")
    return str(value)
