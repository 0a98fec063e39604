"""Pictures that clients send: recognized by their first bytes, and bounded before they are decoded."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from ..errors import InputError
from ..extras import needs
from .load import fit_picture

if TYPE_CHECKING:
    from PIL import Image

# First bytes -> Pillow's name of the format. Pillow tries no other decoder than the one named here.
_FORMATS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (8, b"WEBP", "WEBP"),
    (4, b"ftypavif", "AVIF"),
)


class UnknownFormat(InputError):
    """Bytes are no picture of a format that clients may send."""


class TooManyPixels(InputError):
    """A picture has more pixels than are decoded."""


def sniff(data: bytes) -> str | None:
    """Pillow's name of a picture's format, by the first bytes; None for what is no picture that is taken here."""
    for place, start, name in _FORMATS:
        if data[place : place + len(start)] == start and (name != "WEBP" or data[:4] == b"RIFF"):
            return name
    return None


def decode_picture(data: bytes, size: int, pixels: int, name: str) -> Image.Image:
    """Decode a picture from a client and resize it as the backbone reads it.

    Args:
        data: the file.
        size: of the square that the backbone reads.
        pixels: the most that the picture may have.
        name: what to call it in an error.

    Raises:
        UnknownFormat: it is no picture.
        TooManyPixels: it has too many pixels.
        InputError: it is damaged.
        MissingExtra: Pillow is not installed.
    """
    format = sniff(data)
    if format is None:
        raise UnknownFormat(f"{name} must be a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file, got other bytes")
    with needs("PIL", "reading pictures"):
        from PIL import Image
    try:
        with Image.open(io.BytesIO(data), formats=[format]) as opened:
            width, height = opened.size
            if width * height > pixels:
                raise TooManyPixels(f"{name} must have at most {pixels} pixels, got {width} x {height}")
            return fit_picture(opened, size, name)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise TooManyPixels(f"{name} must have at most {pixels} pixels, got more") from error
    except Exception as error:  # Pillow's decoders report damage through many types, by format
        raise InputError(f"{name} cannot be read as a picture: it is damaged, or no {format} file") from error
