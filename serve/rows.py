"""Rows that clients add, change and delete. `State.change` makes one change at a time; the next search sees it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from ..runtime.embeddings import Embeddings
from ..runtime.errors import GalleryLocked, InputError
from ..runtime.files import locked, write_file
from ..runtime.gallery import RowWriter, open_for_writing
from ..runtime.gallery.store.rows import Relabel
from ..runtime.gallery.values import check_unique
from ..runtime.pictures.received import sniff
from ..runtime.regions import boxes_as_metadata
from . import bodies
from .answers import HIDDEN, PRIVATE
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
        row_bytes: the most bytes of a row's id and metadata.
        patience: seconds to wait while another process, such as another worker, writes to a gallery.
    """

    def __init__(self, uploads: Path | None, row_bytes: int, patience: float) -> None:
        self._uploads = uploads
        self._row_bytes = row_bytes
        self._patience = patience

    def add(
        self,
        opened: OpenGallery,
        body: bodies.PutRows,
        embeddings: Embeddings,
    ) -> bodies.RowsResponse:
        """Add rows in one commit, each with its caption or the `path` of its picture in the metadata.

        Args:
            opened: the gallery.
            body: the rows.
            embeddings: of the rows.

        Raises:
            Refusal: metadata has a key that is the server's; an id with its metadata is too long.
            InputError, GalleryError: as `GalleryWriter.add`.
        """
        given = [{}] * len(body.ids) if body.metadata is None else body.metadata
        if not len(body.ids) == len(embeddings) == len(given):
            counts = f"{len(body.ids)}, {len(embeddings)}, {len(given)}"
            raise InputError(f"ids, rows, metadata: must be of one number, got {counts}")
        for number, (id, row) in enumerate(zip(body.ids, given, strict=True)):
            self._check(number, id, row)
        with self._open(opened) as writer, self._contents(body) as contents:
            replaced = len(writer.ids(body.ids)) if body.overwrite else 0
            parts = zip(given, contents, boxes_as_metadata(embeddings), strict=True)
            rows = [{**row, **content, **place} for row, content, place in parts]
            writer.add(body.ids, embeddings, rows, overwrite=body.overwrite)
        return bodies.RowsResponse(opened.name, len(body.ids), replaced, len(opened.gallery))

    def patch(self, opened: OpenGallery, rows: Sequence[bodies.NewMetadata]) -> bodies.PatchResponse:
        """Replace the metadata of rows in one commit. What is about files, boxes, and the caption of a caption stay.

        Raises:
            Refusal: metadata has a key that is the server's, or another caption than the one that was encoded; an id
                with its metadata is too long.
            InputError, GalleryError: as `GalleryWriter.relabel`.
        """
        for number, row in enumerate(rows):
            self._check(number, row.id, row.metadata)
        ids = [row.id for row in rows]
        check_unique(ids, "rows")
        kept = (*HIDDEN, "caption") if opened.side == "captions" else HIDDEN
        with self._open(opened) as writer:  # nobody else changes what is read here
            before = opened.gallery.find(ids)
            changes = []
            for number, (row, old) in enumerate(zip(rows, before, strict=True)):
                stays = {key: old.metadata[key] for key in kept if key in old.metadata}
                if "caption" in stays and row.metadata.get("caption", stays["caption"]) != stays["caption"]:
                    rule = f"metadata of row {number} must keep its caption, which its vectors are of"
                    raise Refusal(422, "metadata", f"{rule}: put the row with `overwrite` to replace both")
                changes.append(Relabel(row.id, row.id, {**row.metadata, **stays}))
            writer.relabel(changes)
        return bodies.PatchResponse(opened.name, len(rows), len(opened.gallery))

    def delete(self, opened: OpenGallery, ids: Sequence[str]) -> bodies.RowsResponse:
        """Delete rows in one commit.

        Raises:
            InputError, GalleryError: as `GalleryWriter.delete`.
        """
        with self._open(opened) as writer:
            writer.delete(ids)
        return bodies.RowsResponse(opened.name, 0, len(set(ids)), len(opened.gallery))

    def _check(self, number: int, id: str, row: Mapping[str, Any]) -> None:
        """Refusal of metadata from a client that has a key of the server's, or is too long.

        Args:
            number: of the row in the request.
            id, row: of the row, and its metadata.
        """
        for key in PRIVATE:
            if key in row:
                raise Refusal(422, "metadata", f"metadata must not have the key {key!r}, which the server sets")
        if (size := len(msgspec.json.encode([id, row]))) > self._row_bytes:
            rule = f"the id and the metadata of row {number} must have at most {self._row_bytes} bytes, got {size}"
            raise Refusal(422, "metadata", rule)

    def _open(self, opened: OpenGallery) -> RowWriter:
        """The gallery, open for writing.

        Raises:
            GalleryLocked: another process wrote to it all the time.
        """
        until = time.monotonic() + self._patience
        while True:
            try:
                return open_for_writing(opened.gallery.path)
            except GalleryLocked:
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)

    @contextmanager
    def _contents(self, body: bodies.PutRows) -> Iterator[Sequence[Mapping[str, Any]]]:
        """What the server itself adds to the metadata of rows. A block that fails takes kept pictures back."""
        if body.captions is not None:
            yield [{"caption": caption} for caption in body.captions]
        elif body.pictures is None or self._uploads is None:
            yield [{}] * len(body.ids)
        else:
            self._uploads.mkdir(parents=True, exist_ok=True)
            # nobody else counts on a picture until its row is there
            with locked(self._uploads), ExitStack() as on_error:
                yield [{"path": str(_keep(self._uploads, data, on_error))} for data in body.pictures]
                on_error.pop_all()


def _keep(folder: Path, data: bytes, on_error: ExitStack) -> Path:
    """Keep a picture file, named by its content; `on_error` removes what was not there before."""
    format = str(sniff(data))
    suffix = _SUFFIXES.get(format, f".{format.lower()}")
    path = folder.resolve() / f"{hashlib.sha256(data).hexdigest()}{suffix}"
    if not path.exists():
        on_error.callback(path.unlink, missing_ok=True)
        write_file(path, data)
    return path
