"""Captions of a split and the image that each belongs to, as text files have them.

    SPLIT_caps.txt    one caption a line
    SPLIT_ids.txt     optional: one image id a line, for each caption or for each image

With an id for each caption, the ids alone say which captions are of one image; an image may have any number of them.
With an id for each image, or none, every image has equally many captions, which stand together (five as published).

Which features are of which id: forms of features that name their images are read by name. The others hold the images in
the order in which their ids first appear, as long as the captions of an image stand together. Where they do not, ids
must be consecutive numbers, the lowest for the first row of the features. Ids that allow both readings are refused.
"""

from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..counts import counted
from ..errors import InputError, reason_of
from .store import RegionStore

_BYTES_LITERAL = re.compile(r"""b(['"]).*\1""", re.DOTALL)


@dataclass(frozen=True)
class Pairing:
    """Which stored image each caption belongs to.

    Attributes:
        store_rows: int64 [I], the row of each image in the features.
        owner: int64 [C], the image of each caption, 0 to I - 1.
        image_ids: [I], or None where there are none.
    """

    store_rows: NDArray[np.int64]
    owner: NDArray[np.int64]
    image_ids: list[str] | None


def read_lines(file: Path) -> list[str]:
    """Lines without surrounding blanks; only \\n ends one, because captions may hold other separators.

    A byte order mark is dropped. Lines that are all Python literals of bytes, as SCAN writes them under Python 3
    (`b'a dog'`), are decoded.

    Raises:
        InputError: the file cannot be read, or a line is not UTF-8.
    """
    try:
        content = file.read_bytes()
    except (OSError, MemoryError) as error:
        raise InputError(f"{file} cannot be read: {reason_of(error)}") from error
    raw = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if raw[-1] == b"":
        raw.pop()
    lines = []
    for number, line in enumerate(raw, start=1):
        try:
            lines.append(line.decode().strip())
        except UnicodeDecodeError as error:
            raise InputError(f"{file} must be UTF-8 text, and line {number} is not: {error}") from error
    filled = [line for line in lines if line]
    if filled and all(_BYTES_LITERAL.fullmatch(line) for line in filled):
        return [_decoded(file, number, line) for number, line in enumerate(lines, start=1)]
    return lines


def read_captions(file: Path) -> list[str]:
    """The captions of a split; InputError for a file without any."""
    captions = read_lines(file)
    if not captions:
        raise InputError(f"{file} must hold one caption a line, got an empty file")
    return captions


def read_ids(file: Path) -> list[str]:
    """The image ids of a split; blank lines behind the last are dropped."""
    ids = read_lines(file)
    while ids and not ids[-1]:
        ids.pop()
    return ids


def is_blank(caption: str) -> bool:
    """Whether a caption has no visible character: blanks, control characters and bare accents make no word."""
    return all(unicodedata.category(character)[0] in "CMZ" for character in caption)


def pair(ids: Sequence[str] | None, num_captions: int, store: RegionStore, ids_file: Path) -> Pairing:
    """Which stored image each of C captions belongs to.

    Args:
        ids: lines of the ids file, or None.
        num_captions: C.
        store: the features.
        ids_file: for messages.

    Raises:
        InputError: counts of captions, ids and images that do not fit, or ids that contradict the features.
    """
    if ids is not None and len(ids) == num_captions and not (len(set(ids)) == store.count == len(ids)):
        return _by_id(ids, store, ids_file)
    if ids is not None and len(ids) not in (store.count, num_captions):
        raise InputError(
            f"{ids_file} must name each of the {counted(store.count, 'image')} or the image of each of the "
            f"{counted(num_captions, 'caption')}, got {counted(len(ids), 'line')}"
        )
    if num_captions == store.count and num_captions % 5 == 0 and store.names is None and _repeats_five_times(store):
        rows = np.arange(0, store.count, 5)
        return Pairing(rows, np.arange(num_captions) // 5, None if ids is None else [ids[row] for row in rows.tolist()])
    each, rest = divmod(num_captions, store.count)
    if rest or not each:
        raise InputError(
            f"{store.file} has {counted(store.count, 'image')} and there are {counted(num_captions, 'caption')}: "
            f"expected {num_captions} / 5 = {num_captions / 5:g} images, or another divisor of {num_captions}; "
            f"otherwise {ids_file.name} must name the image of each caption, one a line"
        )
    names = store.names if ids is None else ids
    if names is not None:
        _check_different(names, ids_file)
    return Pairing(np.arange(store.count), np.arange(num_captions) // each, None if names is None else list(names))


def _by_id(ids: Sequence[str], store: RegionStore, ids_file: Path) -> Pairing:
    """The captions of one id belong to one image."""
    names = list(dict.fromkeys(ids))
    position = {name: number for number, name in enumerate(names)}
    owner = np.array([position[name] for name in ids], np.int64)
    if store.count == len(ids):  # features for each caption
        rows = np.unique(owner, return_index=True)[1]
        _check_copies(owner, rows, store, ids_file)
        return Pairing(rows, owner, names)
    if store.count != len(names):
        raise InputError(
            f"{store.file} has {counted(store.count, 'image')} and {ids_file} names {len(names)} for "
            f"{counted(len(ids), 'caption')}: they "
            "must be equally many"
        )
    together, numbers = bool(np.all(np.diff(owner) >= 0)), _consecutive(names)
    ascending = numbers is not None and bool(np.all(np.diff(numbers) > 0))
    if store.names is not None or ascending or (together and numbers is None):
        return Pairing(np.arange(store.count), owner, names)
    if numbers is None or together:
        why = "are row numbers in another order than the captions" if together else "do not stand together by image"
        raise InputError(
            f"{ids_file}: the ids {why}, so they do not tell which row of {store.file.name} is which image: put the "
            "captions of each image together and the images in the order of the features"
        )
    return Pairing(numbers, owner, names)


def _consecutive(names: Sequence[str]) -> NDArray[np.int64] | None:
    """The rows that ids stand for if they are consecutive numbers, the lowest for row 0; otherwise None."""
    if not all(name.isascii() and name.isdigit() and len(name) < 18 for name in names):
        return None
    numbers = np.array([int(name) for name in names], np.int64)
    rows = numbers - numbers.min()
    return rows if len(np.unique(rows)) == len(names) and rows.max() == len(names) - 1 else None


def _check_copies(owner: NDArray[np.int64], rows: NDArray[np.int64], store: RegionStore, ids_file: Path) -> None:
    """InputError unless rows of one id are copies of one image: 64 captions spread over the file are compared."""
    for caption in np.unique(np.linspace(0, len(owner) - 1, 64).astype(np.int64)):
        first, other = store.read(np.array([rows[owner[caption]], caption]))
        if not np.array_equal(first, other, equal_nan=True):
            raise InputError(
                f"{ids_file}: lines {rows[owner[caption]] + 1} and {caption + 1} name one image, but {store.file} has "
                "different features in these rows"
            )


def _repeats_five_times(store: RegionStore) -> bool:
    """Whether rows 5k to 5k + 4 are copies of one image: 64 groups spread over the file must agree about it."""
    verdicts = set()
    for group in np.unique(np.linspace(0, store.count // 5 - 1, 64).astype(np.int64)):
        first, *others = store.read(np.arange(group * 5, (group + 1) * 5))
        verdicts.add(all(np.array_equal(first, other) for other in others))
    if len(verdicts) > 1:
        raise InputError(
            f"{store.file} has as many images as captions, but only some groups of five rows are one image stored five "
            "times: store each image once (captions / 5 rows)"
        )
    return verdicts.pop()


def _check_different(names: Sequence[str], ids_file: Path) -> None:
    lines: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if name in lines:
            raise InputError(
                f"{ids_file}: lines {lines[name]} and {number} name the same image {name!r}, and the features have a "
                "row for each: name each image once, or the image of each caption"
            )
        lines[name] = number


def _decoded(file: Path, number: int, line: str) -> str:
    if not line:
        return line
    try:
        value = ast.literal_eval(line)
        return str(value.decode()).strip()
    except (ValueError, SyntaxError, AttributeError, MemoryError, RecursionError) as error:
        raise InputError(f"{file}: line {number} must be UTF-8 text, or b'...' as Python prints it: {error}") from error
