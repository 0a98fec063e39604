"""Pictures that can be read, and what tells that two of them are the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..contract import sha256_file
from ..errors import InputError, reason_of
from ..files import is_utf8
from ..pictures.load import open_picture

_SIDE = 8  # of the thumbnails that are compared
_BOX = 4  # Pillow's Resampling.BOX: each pixel is the mean of those that it stands for


@dataclass(frozen=True)
class Checked:
    """A picture that was read.

    Attributes:
        pixels: SHA-256 of its size and of its upright RGB pixels: equal for equal pictures, whatever their files are.
        content: SHA-256 of its file.
        width, height: in pixels, upright.
        look: its colors at 8 x 8 pixels, 192 bytes.
    """

    pixels: str
    content: str
    width: int
    height: int
    look: bytes


def check_pictures(files: Sequence[Path]) -> Iterator[Checked | InputError]:
    """Read pictures on all cores; for each, in order, what it is, or why it cannot be used (the reason alone)."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(_check, files)


def _check(file: Path) -> Checked | InputError:
    if not is_utf8(file):
        return InputError("its name is not valid UTF-8: rename it")
    try:
        picture = open_picture(file)
        pixels = hashlib.sha256(f"{picture.width} {picture.height} ".encode() + picture.tobytes())
        look = picture.resize((_SIDE, _SIDE), _BOX).tobytes()
        content = sha256_file(file)
    except InputError as error:
        return InputError(str(error).removeprefix(f"{file} "))
    except OSError as error:
        return InputError(reason_of(error))
    return Checked(pixels.hexdigest(), content, picture.width, picture.height, look)
