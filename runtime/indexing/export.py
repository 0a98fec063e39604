"""A gallery's embeddings back out: to .safetensors, .npz or .parquet, as data/vectors.py reads them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import check_choice
from ..data.parquet import write_parquet_vectors
from ..data.safetensors_file import Content, write_safetensors
from ..errors import GalleryError, InputError, reason_of
from ..files import atomic_file
from ..gallery import Gallery
from ..gallery.store.rows import Row
from ..gallery.where import Where
from .embedding_source import BYTES_AT_ONCE

SUFFIXES = (".safetensors", ".npz", ".parquet")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        rows, vectors: how many.
        dtype: of the numbers: float16 where that is what the gallery keeps, otherwise float32.
        error: the largest distance between a vector that was added and the one that was written: 0 where the fine copy
            is float32, not known (None) where it is float16 or fixed16, and measured where there are only codes.
    """

    rows: int
    vectors: int
    dtype: str
    error: float | None


def export_embeddings(gallery: Gallery, file: str | Path, where: Where | None = None) -> Exported:
    """Write the ids, metadata and vectors of a gallery's rows to a file, in the order of addition.

    Vectors are written as the gallery keeps them: those of the fine copy bit for bit, and without one
    what the int8 codes stand for. Rows are read some 64 MB at a time, all of one commit: changes of a writer beside are
    not seen.

    Args:
        gallery: open.
        file: ends in .safetensors, .npz or .parquet. The first two hold `embeddings` [T, D], `lengths` [N] and `rows`,
            JSON lines with id and metadata; Parquet has the columns `id`, `embeddings` and `metadata`.
        where: only rows whose metadata passes this filter, see where.py.

    Raises:
        InputError: another ending, no row, a filter that is none.
        GalleryError: the file cannot be written; what was there before stays.
        GalleryCorrupt: bytes that must be read are not those that were committed.
        MissingExtra: writing Parquet needs a library that is not installed.
    """
    path = Path(file)
    check_choice("the ending of file", path.suffix, SUFFIXES)
    return gallery.at_one_commit(lambda pinned: _export(pinned, path, where))


def _export(gallery: Gallery, path: Path, where: Where | None) -> Exported:
    """Write the rows of a gallery that stays as it is."""
    rows = gallery.rows(where)
    if not rows:
        raise InputError(f"{gallery.path}: there must be a row to export, got none")
    lengths = gallery.lengths([row.id for row in rows])
    dtype = "float16" if gallery.settings.fine == "float16" else "float32"
    pieces = _Pieces(gallery, rows, lengths, dtype)
    try:
        _WRITERS[path.suffix](path, pieces)
    except OSError as error:
        raise GalleryError(f"{path} cannot be written: {reason_of(error)}") from error
    bounds = {"float32": 0.0, "float16": None, "fixed16": None}
    bound = bounds[gallery.settings.fine] if gallery.settings.fine in bounds else gallery.code_error()
    return Exported(len(rows), int(lengths.sum()), dtype, bound)


@dataclass(frozen=True)
class _Pieces:
    """Rows of a gallery that stays as it is, read a few at a time."""

    gallery: Gallery
    rows: Sequence[Row]
    lengths: NDArray[np.int32]
    dtype: str

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of all vectors together."""
        return int(self.lengths.sum()), self.gallery.settings.dim

    @property
    def lines(self) -> NDArray[np.uint8]:
        """Ids and metadata as JSON lines."""
        lines = (json.dumps({"id": row.id, "metadata": dict(row.metadata)}) for row in self.rows)
        return np.frombuffer("\n".join(lines).encode(), np.uint8)

    def read(self) -> Iterator[tuple[Sequence[Row], list[NDArray[Any]]]]:
        """Rows with their vectors [L, D]."""
        edges, longest = [0], 0
        for row, length in enumerate(self.lengths.tolist()):
            longest = max(longest, length)
            if 4 * self.shape[1] * longest * (row + 1 - edges[-1]) > BYTES_AT_ONCE and row > edges[-1]:
                edges.append(row)
                longest = length
        for first, last in pairwise([*edges, len(self.rows)]):
            part = self.rows[first:last]
            vectors = self.gallery.embeddings([row.id for row in part]).rows()
            yield part, [row.astype(self.dtype) for row in vectors]

    def vectors(self) -> Iterator[NDArray[Any]]:
        """Vectors [V, D], one piece after the other."""
        return (np.concatenate(vectors) for _, vectors in self.read())


def _to_safetensors(file: Path, pieces: _Pieces) -> None:
    lengths, lines = pieces.lengths.astype(np.int64), pieces.lines
    arrays = {
        "embeddings": Content(pieces.dtype, pieces.shape, pieces.vectors()),
        "lengths": Content(np.int64, lengths.shape, [lengths]),
        "rows": Content(np.uint8, lines.shape, [lines]),
    }
    write_safetensors(file, arrays, {"format": "np"})


def _to_npz(file: Path, pieces: _Pieces) -> None:
    with atomic_file(file) as beside, zipfile.ZipFile(beside, "w", allowZip64=True) as archive:
        header = {"descr": np.dtype(pieces.dtype).str, "fortran_order": False, "shape": pieces.shape}
        with archive.open("embeddings.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for vectors in pieces.vectors():
                stream.write(np.ascontiguousarray(vectors).data)
        for name, array in (("lengths", pieces.lengths.astype(np.int64)), ("rows", pieces.lines)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def _to_parquet(file: Path, pieces: _Pieces) -> None:
    batches = (
        ([row.id for row in rows], vectors, [json.dumps(dict(row.metadata)) for row in rows])
        for rows, vectors in pieces.read()
    )
    write_parquet_vectors(file, pieces.dtype, batches)


_WRITERS: dict[str, Callable[[Path, _Pieces], None]] = {
    ".safetensors": _to_safetensors,
    ".npz": _to_npz,
    ".parquet": _to_parquet,
}
