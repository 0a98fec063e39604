"""What every source is read into: a picture's name with some of its captions."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import InputError

# Names of the splits in published files and in those that people write, in lower case.
SPLIT_NAMES: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "restval": "train",
    "dev": "dev",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Entry:
    """Some captions of one picture, as a source has them.

    Attributes:
        where: the place in the source, for messages: "captions.csv, line 7".
        names: the picture's file below the folder of pictures; the first of several names that exists is meant.
        captions: as they are written, none of them cleaned; may be empty.
        split: train, dev or test; None where the source names none.
        image_id: the id that the source has for the picture; None where its file name is the id.
    """

    where: str
    names: tuple[str, ...]
    captions: tuple[str, ...]
    split: str | None = None
    image_id: str | None = None


@dataclass(frozen=True)
class Stray:
    """Something in a source that belongs to no picture.

    Attributes:
        where: the place in the source.
        reason: why nothing can be made of it.
    """

    where: str
    reason: str


def split_named(name: str, where: str) -> str:
    """The split that a source's word for it means; InputError for an unknown word."""
    found = SPLIT_NAMES.get(name.strip().lower())
    if found is None:
        raise InputError(f"{where}: the split must be one of {', '.join(SPLIT_NAMES)}, got {name!r}")
    return found


def clean(caption: str) -> str:
    """A caption as one line: every run of blanks and line breaks is one blank, and marks of byte order are removed."""
    return " ".join(caption.replace("\ufeff", " ").split())


def has_word(caption: str) -> bool:
    """Whether a caption holds more than punctuation, blanks, control characters and bare accents."""
    return any(unicodedata.category(character)[0] not in "CMPZ" for character in caption)
