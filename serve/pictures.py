"""The pictures of rows: found by the id of a row, never by a path, and sent as JPEG made here.

A client sees neither the file nor its metadata, and a file that is no picture cannot leave the server this way.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from ..runtime.errors import InputError
from ..runtime.pictures.load import open_picture
from .galleries import OpenGallery
from .problems import Refusal

SIDES = (160, 320, 640, 1280, 2560)  # pixels of the longer side: few, so that the cache serves many
_CACHE_BYTES = 64 << 20


class Pictures:
    """Pictures of rows as JPEG, the last ones kept in memory.

    Args:
        roots: folders below which files are read; empty for wherever a row's `path` leads.
        pixels: the most that a file may have.
    """

    def __init__(self, roots: Sequence[Path], pixels: int) -> None:
        self._roots = [Path(os.path.realpath(root)) for root in roots]
        self._pixels = pixels
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[str, int, int, int], bytes] = OrderedDict()
        self._size = 0

    def read(self, opened: OpenGallery, id: str, side: int) -> bytes:
        """The picture of a row as JPEG.

        Args:
            opened: the gallery.
            id: of the row.
            side: pixels of the longer side at most; the next of SIDES is taken.

        Raises:
            Refusal: 404 where there is no such row, it has no picture, or the picture cannot be read.
        """
        nothing = Refusal(404, "picture", f"the row {id!r} of the gallery {opened.name} has no picture here")
        try:
            (row,) = opened.gallery.find([id])
        except InputError as error:
            raise nothing from error
        path = row.metadata.get("path")
        if not isinstance(path, str) or not self._may_read(path):
            raise nothing
        side = next((one for one in SIDES if one >= side), SIDES[-1])
        try:
            status = os.stat(path)
            key = (path, status.st_size, status.st_mtime_ns, side)
            return self._cached(key) or self._keep(key, self._make(path, side))
        except (OSError, InputError, ValueError) as error:
            raise nothing from error

    def _may_read(self, path: str) -> bool:
        real = Path(os.path.realpath(path))
        return not self._roots or any(real.is_relative_to(root) for root in self._roots)

    def _make(self, path: str, side: int) -> bytes:
        picture = open_picture(path, self._pixels)
        picture.thumbnail((side, side))
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=88)
        return data.getvalue()

    def _cached(self, key: tuple[str, int, int, int]) -> bytes | None:
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
            return self._cache.get(key)

    def _keep(self, key: tuple[str, int, int, int], data: bytes) -> bytes:
        with self._lock:
            self._size += len(data) - len(self._cache.pop(key, b""))
            self._cache[key] = data
            while self._size > _CACHE_BYTES:
                _, oldest = self._cache.popitem(last=False)
                self._size -= len(oldest)
        return data


def etag(data: bytes) -> str:
    """The entity tag of a picture."""
    return f'"{hashlib.sha256(data).hexdigest()[:32]}"'
