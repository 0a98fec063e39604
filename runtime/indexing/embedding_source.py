"""Files of embeddings of other models as rows for a gallery, and as queries."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import check_paths
from ..counts import counted
from ..data.vector_file import StoredRow, VectorFile
from ..data.vectors import Readers, open_vectors
from ..embeddings import Embeddings, checked_vectors
from ..errors import InputError
from ..gallery.values import checked_ids, checked_row
from .metadata_file import read_table

_FLOATS = re.compile(r"\b(float(\d+))\b")
_ID = "id"
BYTES_AT_ONCE = 64 << 20  # of padded vectors that are held, or committed, together


@dataclass(frozen=True)
class EmbeddingRow:
    """One row as it was read.

    Attributes:
        id: the row's id.
        vectors: [L, D] float32; None where there is a problem.
        metadata: plain JSON.
        padding: number of vectors of zeros that were left out.
        problem: why it cannot be a row, in words.
    """

    id: str
    vectors: NDArray[np.float32] | None
    metadata: Mapping[str, Any]
    padding: int = 0
    problem: str | None = None


@dataclass(frozen=True)
class EmbeddingSource:
    """Rows of embeddings in files.

    Attributes:
        files: where they are.
        ids: of all rows, unique.
        beside: metadata of all rows from a file of its own; None where there is none.
        made_up: the rows, by file, whose ids were made of the file's name and the row's number, as nothing names them.
    """

    files: Sequence[VectorFile]
    ids: Sequence[str]
    beside: Sequence[Mapping[str, Any]] | None = None
    made_up: Sequence[range] = ()

    def read(self) -> Iterator[EmbeddingRow]:
        """Every row in order.

        Raises:
            InputError: a file turns out to be damaged.
        """
        number = 0
        for file in self.files:
            rows, end = file.read(), number + file.count
            for stored in islice(rows, file.count):
                beside = {} if self.beside is None else self.beside[number]
                yield self._checked(self.ids[number], stored, beside, file.padded)
                number += 1
            if number < end or next(rows, None) is not None:
                raise InputError(f"{file.file} must have {counted(file.count, 'row')}: it changed while it was read")

    def dim(self) -> int:
        """D, the width of the vectors: that of the first row that can be read.

        Raises:
            InputError: no row can be read.
        """
        problem = "there is none"
        for row in self.read():
            if row.vectors is not None:
                return int(row.vectors.shape[1])
            problem = f"{row.id}: {row.problem}"
        raise InputError(f"no row can be read; the last: {problem}")

    def embeddings(self, dim: int | None = None) -> Embeddings:
        """All rows at once: queries, for example.

        Args:
            dim: the width that they must have; None for that of the first row.

        Raises:
            InputError: a row cannot be read, or has another width.
        """
        rows = []
        for row in self.read():
            if row.vectors is None:
                raise InputError(f"{row.id}: {row.problem}")
            if row.vectors.shape[1] != (dim := dim or row.vectors.shape[1]):
                raise InputError(f"{row.id}: D must be {dim}, got {row.vectors.shape[1]}")
            rows.append(row.vectors)
        return Embeddings.padded(rows)

    @property
    def rounded(self) -> list[str]:
        """The types of numbers in the files that float32 cannot hold exactly, such as float64; sorted."""
        stored = " ".join(file.dtype for file in self.files).replace("double", "float64")
        return sorted({name for name, bits in _FLOATS.findall(stored) if int(bits) > 32})

    @staticmethod
    def _checked(id: str, stored: StoredRow, beside: Mapping[str, Any], padded: bool) -> EmbeddingRow:
        try:
            if stored.problem is not None:
                raise InputError(stored.problem)
            metadata = checked_row({**stored.metadata, **beside})
            vectors = checked_vectors(stored.vectors, "vectors", drop_zeros=padded)
        except InputError as error:
            return EmbeddingRow(id, None, {}, problem=str(error))
        held = np.shape(stored.vectors)
        return EmbeddingRow(id, vectors, metadata, (held[0] if len(held) == 2 else 1) - len(vectors))


def embedding_source(
    paths: Sequence[str | Path], metadata: str | Path | None = None, readers: Readers | None = None
) -> EmbeddingSource:
    """The rows of files or folders of embeddings (data/vectors.py lists the forms), in their order.

    A row's id is the one that its file has; without one it is that of its line in `metadata`, or else the file's name
    without its suffix, a slash and the row's number.

    Args:
        paths: the files.
        metadata: CSV, JSON lines or Parquet with a line for each row: the rows' metadata, and their ids in the column
            `id`. Where the files have ids as well, lines belong to the rows with their id, otherwise line i to row i.
        readers: what opens files of further suffixes.

    Raises:
        InputError: a file cannot be read, has another form, or holds no row; an id is none or occurs twice; lines of
            metadata are missing or belong to no row.
        MissingExtra: reading Parquet needs a library that is not installed.
    """
    check_paths("paths", paths)
    files = [file for path in paths for file in open_vectors(path, readers)]
    count = sum(file.count for file in files)
    if not count:
        raise InputError(f"{files[0].file if files else 'paths'} must hold at least one row, got none")
    ids: list[str] = []
    for file in files:
        if file.ids is None:
            ids += [f"{file.file.stem}/{row}" for row in range(file.count)]
        else:
            ids += checked_ids(file.ids, f"{file.file}: ids")
    beside: Sequence[Mapping[str, Any]] | None = None
    renamed = False
    if metadata is not None:
        have_ids = [file.ids is not None for file in files]
        if any(have_ids) != all(have_ids):
            raise InputError("metadata: either all files must have ids, or none of them")
        before = ids
        ids, beside = _with_lines(ids, all(have_ids), metadata)
        renamed = ids is not before
    twice = [id for id, number in Counter(ids).items() if number > 1]
    if twice:
        places = (f"row {row} of {file.file}" for file in files for row in range(file.count))
        where = [place for place, id in zip(places, ids, strict=True) if id == twice[0]]
        others = f", and {counted(len(twice) - 1, 'other id')} more than once" if len(twice) > 1 else ""
        raise InputError(f"ids must be unique, got {twice[0]!r} in {where[0]} and in {where[1]}{others}")
    unnamed = [rows for file, rows in zip(files, _ranges(files), strict=True) if file.ids is None and rows]
    return EmbeddingSource(files, ids, beside, [] if renamed else unnamed)


def read_embeddings(
    paths: Sequence[str | Path], dim: int | None = None, readers: Readers | None = None
) -> tuple[list[str], Embeddings]:
    """All rows of files of embeddings at once, with their ids.

    Args:
        paths, readers: as in `embedding_source`.
        dim: as in `EmbeddingSource.embeddings`.

    Raises:
        InputError: as `embedding_source`; a row cannot be read, or has another width.
    """
    source = embedding_source(paths, readers=readers)
    return list(source.ids), source.embeddings(dim)


def _ranges(files: Sequence[VectorFile]) -> Iterator[range]:
    """The rows of each file, counted over all of them."""
    start = 0
    for file in files:
        yield range(start, start := start + file.count)


def _with_lines(ids: list[str], named: bool, metadata: str | Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Ids and metadata of rows, from a file with a line for each."""
    table = read_table(metadata, _ID)
    if not named:
        if len(table) != len(ids):
            raise InputError(f"{metadata} must have a line for each of {counted(len(ids), 'row')}, got {len(table)}")
        names = [row.pop(_ID, None) for _, row in table]
        if any(name is not None for name in names):
            ids = checked_ids(names, f"{metadata}: {_ID}")
        return ids, [row for _, row in table]
    by_id: dict[str, dict[str, Any]] = {}
    for place, row in table:
        if _ID not in row:
            raise InputError(f"{place}: must have an `{_ID}`, because the files of embeddings have ids")
        (id,) = checked_ids([row.pop(_ID)], f"{place}: {_ID}")
        if id in by_id:
            raise InputError(f"{place}: each id must occur once, got {id!r} again")
        by_id[id] = row
    lost = by_id.keys() - set(ids)
    if lost:
        raise InputError(
            f"{metadata}: the id of each line must be that of a row, got {min(lost)!r} in {len(lost)} of {len(by_id)}"
        )
    return ids, [by_id.get(id, {}) for id in ids]
