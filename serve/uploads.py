"""Pictures from clients, decoded; what the library refuses about them gets the status that HTTP has for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..runtime.pictures.received import TooManyPixels, UnknownFormat, decode_picture
from .problems import Refusal

if TYPE_CHECKING:
    from PIL import Image

    from .galleries import OpenGallery


def decode_upload(opened: OpenGallery, data: bytes, pixels: int, name: str) -> Image.Image:
    """Decode a picture of a request for a gallery; `name` is what an error calls it.

    Raises:
        Refusal: the gallery's bundle takes no pictures, or this is no picture or has too many pixels.
        InputError, MissingExtra: as `decode_picture`.
    """
    preprocess = opened.need_matcher().manifest.preprocess
    if preprocess is None:
        detail = f"the bundle of the gallery {opened.name} has no backbone and takes no pictures: send embeddings"
        raise Refusal(422, "picture", detail)
    try:
        return decode_picture(data, preprocess.size, pixels, name)
    except UnknownFormat as error:
        raise Refusal(415, "picture", str(error)) from error
    except TooManyPixels as error:
        raise Refusal(413, "pixels", str(error)) from error
