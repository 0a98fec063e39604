"""Ids and metadata of a segment's rows: a file of arrays beside its vectors, written once like those.

An id is found by its hash: the hashes are stored in rising order with the rows they belong to. So a lookup reads a few
pages, whatever the gallery holds, and nothing is kept in memory for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import GalleryCorrupt
from .files import MappedFile

_ID_BYTES = "id_bytes"
_METADATA_BYTES = "metadata_bytes"


@dataclass(frozen=True)
class Row:
    """One row's id, and its metadata as they were added."""

    id: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Relabel:
    """A row that keeps its place and its vectors, under a new id or with new metadata."""

    id: str
    new_id: str
    metadata: Mapping[str, Any]


class RowTable(Protocol):
    """The rows of one segment, deleted ones included."""

    def __len__(self) -> int:
        """How many there are."""

    def row(self, position: int) -> Row:
        """One row."""

    def text(self, position: int) -> tuple[str, str]:
        """One row's id, and its metadata as JSON."""

    def rows(self) -> list[Row]:
        """All of them, in order."""

    def texts(self) -> tuple[list[str], list[str]]:
        """All ids, and all metadata as JSON."""

    def find(self, ids: Sequence[str], hashes: NDArray[np.int64]) -> Iterator[tuple[str, int]]:
        """Those of the ids that it has, deleted ones included, with their positions; hashes: of the ids."""


def hash_ids(ids: Iterable[str]) -> NDArray[np.int64]:
    """A hash of each id."""
    digests = b"".join(hashlib.blake2b(id.encode(), digest_size=8).digest() for id in ids)
    return np.frombuffer(digests, "<i8").astype(np.int64)


def row_arrays(ids: Sequence[str], metadata: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays of a row file, from ids and metadata as JSON."""
    hashes = hash_ids(ids)
    order = np.argsort(hashes, kind="stable")
    id_bytes, id_starts = _joined(ids)
    metadata_bytes, metadata_starts = _joined(metadata)
    return {
        "hashes": hashes[order],
        "order": order.astype(np.int64),
        "id_starts": id_starts,
        "metadata_starts": metadata_starts,
        _ID_BYTES: id_bytes,
        _METADATA_BYTES: metadata_bytes,
    }


def _joined(texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    encoded = [text.encode() for text in texts]
    starts = np.r_[0, np.cumsum([len(data) for data in encoded], dtype=np.int64)]
    return np.frombuffer(b"".join(encoded), np.uint8), starts


class MappedRows:
    """The rows of one segment in their file.

    Args:
        file: the file.
        count: number of rows.

    Raises:
        GalleryCorrupt: the file's arrays are not those of as many rows.
    """

    def __init__(self, file: MappedFile, count: int) -> None:
        self.file = file
        self._count = count
        self._starts: dict[str, memoryview] = {}  # read once: a search asks for a few rows of many
        for name in ("hashes", "order"):
            file.expect(name, np.int64, count)
        for name in ("id_starts", "metadata_starts"):
            file.expect(name, np.int64, count + 1)
        for name in (_ID_BYTES, _METADATA_BYTES):
            file.expect(name, np.uint8, file.shape(name)[0])

    def __len__(self) -> int:
        return self._count

    def row(self, position: int) -> Row:
        """See RowTable.

        Raises:
            GalleryCorrupt: its bytes are not those that were committed, or are no id and no JSON object.
        """
        id, metadata = self.text(position)
        return Row(id, parse_metadata(metadata, self._name(position)))

    def id(self, position: int) -> str:
        """One row's id; raises as `row` does."""
        return self._text("id_starts", _ID_BYTES, position)

    def text(self, position: int) -> tuple[str, str]:
        """See RowTable; raises as `row` does."""
        return self.id(position), self._text("metadata_starts", _METADATA_BYTES, position)

    def rows(self) -> list[Row]:
        """See RowTable; raises as `row` does."""
        ids, metadata = self.texts()
        return [
            Row(id, parse_metadata(text, self._name(i))) for i, (id, text) in enumerate(zip(ids, metadata, strict=True))
        ]

    def texts(self) -> tuple[list[str], list[str]]:
        """See RowTable; raises as `row` does."""
        return self._texts("id_starts", _ID_BYTES), self._texts("metadata_starts", _METADATA_BYTES)

    def find(self, ids: Sequence[str], hashes: NDArray[np.int64]) -> Iterator[tuple[str, int]]:
        """See RowTable; raises as `row` does."""
        known = self.file.read("hashes")
        first = np.searchsorted(known, hashes, side="left")
        last = np.searchsorted(known, hashes, side="right")
        order = self.file.read("order")
        for i in np.flatnonzero(first < last).tolist():
            for position in order[first[i] : last[i]].tolist():
                if self._text("id_starts", _ID_BYTES, position) == ids[i]:
                    yield ids[i], position

    def _name(self, position: int) -> str:
        return f"{self.file.path}: row {position}"

    def _text(self, starts: str, data: str, position: int) -> str:
        if not 0 <= position < self._count:
            raise GalleryCorrupt(f"{self.file.path}: there is no row {position} among {self._count}")
        edges = self._starts.get(starts)
        if edges is None:
            try:
                edges = self._starts[starts] = self.file.read(starts).data
            except GalleryCorrupt:  # somewhere: what matters is whether it is here
                begin, end = self.file.read(starts, position, position + 2).tolist()
                return self._decode(self.file.read_bytes(data, begin, end), position)
        return self._decode(self.file.read_bytes(data, edges[position], edges[position + 1]), position)

    def _texts(self, starts: str, data: str) -> list[str]:
        edges = self.file.read(starts).tolist()
        joined = bytes(self.file.read(data))
        if edges[0] != 0 or edges[-1] != len(joined) or any(a > b for a, b in pairwise(edges)):
            raise GalleryCorrupt(f"{self.file.path}: {starts} must rise from 0 to {len(joined)}")
        return [self._decode(joined[a:b], i) for i, (a, b) in enumerate(pairwise(edges))]

    def _decode(self, data: bytes, position: int) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise GalleryCorrupt(f"{self._name(position)} is no text: {error}") from error


class HeldRows:
    """The rows of one segment in memory: those of an older gallery, or what is left of a damaged file.

    Args:
        ids: of all rows; None where there is no row any more.
        metadata: as JSON.
    """

    def __init__(self, ids: Sequence[str | None], metadata: Sequence[str]) -> None:
        self._ids = [id or "" for id in ids]
        self._metadata = list(metadata)
        self._place = {id: i for i, id in enumerate(ids) if id is not None}

    def __len__(self) -> int:
        return len(self._ids)

    def row(self, position: int) -> Row:
        """See RowTable."""
        id, metadata = self.text(position)
        return Row(id, parse_metadata(metadata, f"row {id!r}"))

    def text(self, position: int) -> tuple[str, str]:
        """See RowTable."""
        return self._ids[position], self._metadata[position]

    def rows(self) -> list[Row]:
        """See RowTable."""
        return [self.row(position) for position in range(len(self._ids))]

    def texts(self) -> tuple[list[str], list[str]]:
        """See RowTable."""
        return list(self._ids), list(self._metadata)

    def find(self, ids: Sequence[str], hashes: NDArray[np.int64]) -> Iterator[tuple[str, int]]:
        """See RowTable."""
        for id in ids:
            if id in self._place:
                yield id, self._place[id]


def parse_metadata(text: str, name: str) -> Mapping[str, Any]:
    """A row's metadata from JSON; GalleryCorrupt, which begins with `name`, where it is no object."""
    if text == "{}":  # what most rows have
        return {}
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GalleryCorrupt(f"{name}: its metadata is no JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise GalleryCorrupt(f"{name}: its metadata must be an object, got {type(metadata).__name__}")
    return metadata
