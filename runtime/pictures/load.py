"""Pictures become the backbone's `pixels`: the one preprocessing that feature extraction and the runtime share."""

from __future__ import annotations

import importlib.util
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from ..checks import check_paths
from ..contract import Preprocess
from ..errors import InputError, reason_of
from ..extras import missing, needs

if TYPE_CHECKING:
    from PIL import Image

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
HEIF_SUFFIXES = (".heic", ".heif", ".hif")  # with the extra heif

_MOST = 65535  # of a pixel of 16 bits

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
        scaled = np.asarray(fit_picture(picture, size), np.float32) / np.float32(255)
        pixels[row] = ((scaled - mean) / std).transpose(2, 0, 1)
    return pixels


def fit_picture(picture: Picture, size: int, name: str = "a picture") -> Image.Image:
    """A picture as `open_picture` returns it, resized to size x size as the backbone reads it (bicubic, not cropped).

    Fitting a fitted picture changes nothing, so a run may read and check its pictures before it encodes them. `name` is
    what errors call an open picture.

    Raises:
        InputError: as `open_picture`.
    """
    image = open_picture(picture, name=name)
    if image.size != (size, size):
        image = image.resize((size, size), _pillow().Resampling.BICUBIC)
    return image


def open_picture(picture: Picture, most: int | None = None, name: str = "a picture") -> Image.Image:
    """A picture as upright RGB: EXIF orientation applied, transparency laid over white, 16-bit gray scaled to 8.

    Of a file with several frames (GIF, TIFF) the first one is read.

    Args:
        picture: a file or an open Pillow image.
        most: pixels that a file may have, by its head; None for as many as Pillow accepts (178 million).
        name: what errors call an open image; a file has its own.

    Raises:
        InputError: the file is missing, corrupt or truncated, is not a regular file, or has too many pixels. Its
            pixels are floating-point numbers, or beyond 16 bits, whose range is not known.
    """
    pillow = _pillow()
    from PIL import ImageOps

    if not isinstance(picture, str | Path):
        if not isinstance(picture, pillow.Image):
            rule = "must be a path or an image of Pillow (Image.open, Image.fromarray)"
            raise InputError(f"{name} {rule}, got {type(picture).__name__}")
        try:  # Pillow reads the pixels of an open file only now
            return _flatten(ImageOps.exif_transpose(picture), name)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{name} cannot be read: {reason_of(error)}") from error
    try:
        with _opened(picture) as file, pillow.open(file) as opened:
            if most is not None and opened.width * opened.height > most:
                raise InputError(f"{picture} must have at most {most} pixels, got {opened.width} x {opened.height}")
            return _flatten(ImageOps.exif_transpose(opened), str(picture))
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders report damage through many types, by format
        path = Path(picture)
        reason = _reason(error, path, lambda: path.stat().st_size == 0)
        raise InputError(f"{picture} cannot be read as a picture: {reason}") from error


def fit_encoded(data: bytes, name: str, size: int) -> Image.Image:
    """The picture that a file of these bytes holds, as `fit_picture` returns it.

    Args:
        data: the bytes.
        name: of the file, for errors.
        size: of the result.

    Raises:
        InputError: as `open_picture`.
    """
    pillow = _pillow()
    from PIL import ImageOps

    try:
        with pillow.open(BytesIO(data)) as opened:
            image = _flatten(ImageOps.exif_transpose(opened), name)
    except InputError:
        raise
    except Exception as error:  # as in `open_picture`
        reason = _reason(error, Path(name), lambda: not data)
        raise InputError(f"{name} cannot be read as a picture: {reason}") from error
    return fit_picture(image, size)


@dataclass(frozen=True)
class PictureFiles:
    """What was found in paths that should hold pictures.

    Attributes:
        files: the picture files, each once: files as given, a folder's in sorted order.
        passed_over: how many other files the folders hold, by suffix in lower case; "" for files without one.
        unreadable: folders that could not be read, with the reason.
    """

    files: list[Path]
    passed_over: Mapping[str, int]
    unreadable: Mapping[Path, str]


def list_pictures(paths: Sequence[str | Path]) -> PictureFiles:
    """List the picture files among `paths`, and count what else there is. Links to folders are not followed.

    Raises:
        InputError: one path in place of a list, a path that does not exist, or no picture at all.
    """
    check_paths("paths", paths)
    suffixes = picture_suffixes()
    found: dict[Path, None] = {}
    passed_over: Counter[str] = Counter()
    unreadable: dict[Path, str] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            if not os.path.lexists(path):
                raise InputError(f"{path} does not exist")
            found[path] = None
            continue
        names: list[Path] = []
        for folder, _, files in os.walk(path, onerror=lambda error: _note(unreadable, error)):
            names += [Path(folder, file) for file in files]
        for file in sorted(names):
            if file.suffix.lower() in suffixes:
                found[file] = None
            else:
                passed_over[file.suffix.lower()] += 1
    if not found:
        raise InputError(f"no picture ({', '.join(suffixes)}) in {', '.join(map(str, paths)) or 'no path'}")
    return PictureFiles(list(found), dict(passed_over), unreadable)


def picture_suffixes() -> tuple[str, ...]:
    """Suffixes of the picture files that a folder is searched for, in lower case."""
    return PICTURE_SUFFIXES + (HEIF_SUFFIXES if importlib.util.find_spec("pillow_heif") is not None else ())


def _note(unreadable: dict[Path, str], error: OSError) -> None:
    unreadable[Path(error.filename)] = error.strerror or str(error)


@contextmanager
def _opened(path: str | Path) -> Iterator[BinaryIO]:
    """A regular file open for reading; a FIFO or device is refused before anything waits for it."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InputError(f"{path} must be a regular file")
        yield file


def _reason(error: Exception, path: Path, is_empty: Callable[[], bool]) -> str:
    """Why a picture could not be read, in words."""
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror
    pillow = _pillow()
    if isinstance(error, pillow.DecompressionBombError) and (counted := re.search(r"\((\d+) pixels\)", str(error))):
        return f"it has {counted[1]} pixels, and at most {2 * pillow.MAX_IMAGE_PIXELS} are read: make it smaller"
    if isinstance(error, pillow.UnidentifiedImageError):
        if path.suffix.lower() in HEIF_SUFFIXES and path.suffix.lower() not in picture_suffixes():
            return str(missing("pillow_heif", "reading HEIC"))
        return "it is empty" if is_empty() else "it is in no format that Pillow knows, or damaged"
    return str(error) or type(error).__name__


def _flatten(image: Image.Image, name: str) -> Image.Image:
    from PIL import Image

    if 0 in image.size:
        raise InputError(f"{name} must have a pixel, got {image.width} x {image.height}")
    if image.mode == "F":  # from 0 to 1, to 255 or to anything: Pillow's own conversion clips, and 0 to 1 is black
        raise InputError(f"{name} has floating-point pixels, whose range is not known: save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16- and 32-bit gray: Pillow's own conversion to RGB clips instead of scaling
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > _MOST):
            found = f"{values.min()} to {values.max()}"
            raise InputError(f"{name} must have pixels from 0 to {_MOST}, got {found}: save it with 8 or 16 bits")
        gray = values.astype(np.float32) / np.float32(257)
        return Image.fromarray(gray.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _pillow() -> ModuleType:
    with needs("PIL", "reading pictures"):
        from PIL import Image
    _register_heif()
    return Image


@cache
def _register_heif() -> None:
    """Let Pillow read HEIC where pillow-heif is installed."""
    if importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()
