"""Rows that clients add and delete. One change is made at a time; readers see it with their next search."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..runtime.embeddings import Embeddings
from ..runtime.errors import InputError
from ..runtime.files import write_file
from ..runtime.gallery import GalleryWriter
from .answers import PRIVATE
from .galleries import OpenGallery
from .problems import Refusal

_SUFFIXES = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "GIF": ".gif",
    "BMP": ".bmp",
    "TIFF": ".tif",
    "WEBP": ".webp",
    "AVIF": ".avif",
}


class Writers:
    """Changes galleries.

    Args:
        uploads: folder for the pictures of rows; None keeps none.
    """

    def __init__(self, uploads: Path | None) -> None:
        self._uploads = uploads
        self._one_at_a_time = threading.Lock()

    def add(
        self,
        opened: OpenGallery,
        ids: Sequence[str],
        embeddings: Embeddings,
        metadata: Sequence[Mapping[str, Any]] | None,
        contents: Sequence[Mapping[str, Any]],
        overwrite: bool,
    ) -> tuple[int, int]:
        """Add rows in one commit.

        Args:
            opened: the gallery.
            ids, embeddings, metadata, overwrite: as in `GalleryWriter.add`.
            contents: metadata that the server adds to each row: its caption, or the `path` of its picture.

        Returns:
            Rows added, and rows that they replaced.

        Raises:
            Refusal: metadata has a key that is the server's.
            InputError, GalleryError: as `GalleryWriter.add`.
        """
        given = [{}] * len(ids) if metadata is None else metadata
        if not len(ids) == len(embeddings) == len(given):
            counts = f"{len(ids)}, {len(embeddings)}, {len(given)}"
            raise InputError(f"ids, rows, metadata: must be of one number, got {counts}")
        for row in given:
            for key in PRIVATE:
                if key in row:
                    raise Refusal(422, "metadata", f"metadata must not have the key {key!r}, which the server sets")
        with self._one_at_a_time, GalleryWriter.open(opened.gallery.path) as writer:
            replaced = len(writer.ids(ids)) if overwrite else 0
            rows = [{**row, **content} for row, content in zip(given, contents, strict=True)]
            writer.add(ids, embeddings, rows, overwrite=overwrite)
        return len(ids) - replaced, replaced

    def delete(self, opened: OpenGallery, ids: Sequence[str]) -> None:
        """Delete rows in one commit.

        Raises:
            InputError, GalleryError: as `GalleryWriter.delete`.
        """
        with self._one_at_a_time, GalleryWriter.open(opened.gallery.path) as writer:
            writer.delete(ids)

    def keep_picture(self, data: bytes, format: str) -> dict[str, str]:
        """Keep a picture file, named by its content, and return the metadata that names it."""
        if self._uploads is None:
            return {}
        path = (
            self._uploads.resolve() / f"{hashlib.sha256(data).hexdigest()}{_SUFFIXES.get(format, '.' + format.lower())}"
        )
        if not path.exists():
            self._uploads.mkdir(parents=True, exist_ok=True)
            write_file(path, data)
        return {"path": str(path)}
