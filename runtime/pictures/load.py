"""Pictures become the backbone's `pixels`: the one preprocessing that feature extraction and the runtime share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from ..contract import Preprocess
from ..errors import InputError

if TYPE_CHECKING:
    from PIL import Image

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

Picture: TypeAlias = "str | Path | Image.Image"


def load_pixels(pictures: Sequence[Picture], preprocess: Preprocess) -> npt.NDArray[np.float32]:
    """Read, upright, flatten, resize and normalize pictures.

    Args:
        pictures: files (whatever Pillow reads) or open Pillow images, B of them, of any size and mode.
        preprocess: size S, mean and std of the backbone.

    Returns:
        pixels [B, 3, S, S], RGB, `(x / 255 - mean) / std`. The picture is resized to a square without cropping
        (bicubic), so a region of the grid is the same fraction of the original picture.

    Raises:
        InputError: no pictures, or one that is missing, corrupt or truncated (the message names it).
    """
    if not pictures:
        raise InputError("pictures must hold at least one picture, got none")
    size = preprocess.size
    pixels = np.empty((len(pictures), 3, size, size), np.float32)
    mean = np.asarray(preprocess.mean, np.float32)
    std = np.asarray(preprocess.std, np.float32)
    for row, picture in enumerate(pictures):
        image = open_picture(picture)
        if image.size != (size, size):
            image = image.resize((size, size), _pillow().Resampling.BICUBIC)
        scaled = np.asarray(image, np.float32) / np.float32(255)
        pixels[row] = ((scaled - mean) / std).transpose(2, 0, 1)
    return pixels


def open_picture(picture: Picture) -> Image.Image:
    """A picture as upright RGB: EXIF orientation applied, transparency laid over white, 16-bit gray scaled to 8.

    Raises:
        InputError: the file is missing, corrupt or truncated.
    """
    pillow = _pillow()
    from PIL import ImageOps

    if isinstance(picture, pillow.Image):
        return _flatten(ImageOps.exif_transpose(picture))
    try:
        with pillow.open(picture) as opened:
            return _flatten(ImageOps.exif_transpose(opened))
    # Pillow's decoders report damage through all of these, by format.
    except (OSError, SyntaxError, ValueError, EOFError, pillow.DecompressionBombError) as error:
        raise InputError(f"{picture} cannot be read as a picture: {error}") from error


def find_pictures(paths: Sequence[str | Path]) -> list[Path]:
    """The picture files among `paths`: files as given, folders searched through, in sorted order, each file once.

    Raises:
        InputError: a path that does not exist, or no picture at all.
    """
    found = dict.fromkeys(file for path in paths for file in _files(Path(path)))
    if not found:
        raise InputError(f"no picture ({', '.join(PICTURE_SUFFIXES)}) in {', '.join(map(str, paths)) or 'no path'}")
    return list(found)


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES)
    elif path.is_file():
        yield path
    else:
        raise InputError(f"{path} does not exist")


def _flatten(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I"):  # 16- and 32-bit gray: Pillow's own conversion to RGB clips instead of scaling
        gray = np.asarray(image, np.float32) / np.float32(257)
        return Image.fromarray(gray.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError("reading pictures needs Pillow: pip install 'chan-rt[pictures]'") from error
    return Image
