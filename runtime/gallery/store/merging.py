"""Writing segments anew together: which ones (few enough to open, seldom enough to write), and their arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..proof.rows import ArrayPart
from .catalogue import SegmentRecord
from .commit import NewFiles
from .rows import row_arrays
from .segments import Segment, prepared_arrays, stored_arrays

GROWTH = 4  # how many times larger than any of them what replaces segments must be


def segments_to_fold(sizes: Sequence[float], new: float, limit: float) -> int:
    """How many of the last segments should be written together with rows that are being added.

    As many as make a segment at least GROWTH times as large as the largest of them. So a row is written again at most
    log_GROWTH(limit / its segment's size) times, and the segments that are left below the limit grow geometrically
    towards the front: a gallery of n rows that came one by one has about GROWTH log_GROWTH(n) of them.

    Args:
        sizes: bytes of the segments' living rows, in order.
        new: bytes of what is added.
        limit: bytes of the largest segment to make.
    """
    fold, total, largest = 0, new, 0.0
    for count, size in enumerate(reversed(sizes), 1):
        total += size
        largest = max(largest, size)
        if total > limit:
            break
        if total >= GROWTH * largest:
            fold = count
    return fold


def groups_to_compact(sizes: Sequence[float], limit: float) -> Iterator[slice]:
    """Consecutive segments whose living rows fit one file of `limit` bytes."""
    first, total = 0, 0.0
    for i, size in enumerate(sizes):
        if i > first and total + size > limit:
            yield slice(first, i)
            first, total = i, 0.0
        total += size
    if first < len(sizes):
        yield slice(first, len(sizes))


def without_rows(segments: Sequence[SegmentRecord], places: Iterable[tuple[int, int]]) -> list[SegmentRecord]:
    """The segments once the rows at these places (segment, position) are deleted; those with no row left are gone."""
    records = list(segments)
    dead: dict[int, list[int]] = {}
    for index, position in places:
        dead.setdefault(index, []).append(position)
    for index, positions in dead.items():
        live = records[index].live.copy()
        live[positions] = False
        records[index] = replace(records[index], live=live)
    return [record for record in records if record.live.any()]


def pieces_of(starts: NDArray[np.int64], limit: int) -> list[tuple[int, int]]:
    """Rows (first, behind the last) in pieces of at most `limit` vectors, but of one row at least."""
    edges = [0]
    while edges[-1] < len(starts) - 1:
        stop = int(np.searchsorted(starts, starts[edges[-1]] + limit, side="right")) - 1
        edges.append(max(edges[-1] + 1, stop))
    return list(pairwise(edges))


@dataclass(frozen=True)
class Piece:
    """Rows as they go into a segment.

    Attributes:
        lengths: int64 [rows], vectors of each.
        vectors: the arrays of the segment's first file, without `starts`.
        prepared: what preparing search adds, see `prepared_arrays`; None where it was not prepared.
        ids: of the rows.
        metadata: of the rows, as JSON.
    """

    lengths: NDArray[np.int64]
    vectors: Mapping[str, NDArray[Any]]
    prepared: Mapping[str, NDArray[Any]] | None
    ids: list[str]
    metadata: list[str]

    @classmethod
    def of_part(cls, part: ArrayPart, ids: list[str], metadata: list[str]) -> Piece:
        """Rows that were just quantized."""
        vectors: dict[str, NDArray[Any]] = {
            "codes": part.stored,
            "scale": part.scale,
            "error": part.error,
            "norm": part.norm,
        }
        fine = part.exact if part.low is None else part.low
        if fine is not None:
            vectors["fine"] = fine
        prepared = None if part.plan is None else prepared_arrays(part)
        return cls(np.diff(part.starts), vectors, prepared, ids, metadata)

    @classmethod
    def of_segment(cls, segment: Segment, keep: NDArray[np.bool_]) -> Piece:
        """The rows of a segment where `keep` is True, copied as they are."""
        names = ["codes", "scale", "error", "norm", *(["fine"] if segment.has_fine else [])]
        positions = np.flatnonzero(keep).tolist()
        texts = [segment.table.text(position) for position in positions]
        return cls(
            np.diff(segment.starts)[keep],
            {name: segment.kept(name, keep) for name in names},
            None if segment.plan is None else segment.kept_prepared(keep),
            [id for id, _ in texts],
            [metadata for _, metadata in texts],
        )

    @staticmethod
    def joined(pieces: Sequence[Piece]) -> Piece:
        """All rows, in order; not prepared unless each piece is."""
        prepared = [piece.prepared for piece in pieces if piece.prepared is not None]
        return Piece(
            np.concatenate([piece.lengths for piece in pieces]),
            _joined([piece.vectors for piece in pieces]),
            _joined(prepared) if len(prepared) == len(pieces) else None,
            [id for piece in pieces for id in piece.ids],
            [text for piece in pieces for text in piece.metadata],
        )

    @property
    def starts(self) -> NDArray[np.int64]:
        """First vector of each row, and the number of vectors: int64 [rows + 1]."""
        return np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])

    @property
    def bytes(self) -> int:
        """Of the vectors."""
        return sum(array.nbytes for array in self.vectors.values())

    def vector_arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays of the first file; the codes come first, so that they begin on a cache line."""
        codes, *others = self.vectors.items()
        return dict([codes, ("starts", self.starts), *others])

    def prepared_arrays(self) -> dict[str, NDArray[Any]] | None:
        """The arrays of the third file, where search was prepared."""
        return None if self.prepared is None else stored_arrays(self.prepared, self.starts)

    def row_arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays of the second file."""
        return row_arrays(self.ids, self.metadata)


def _joined(arrays: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    if len(arrays) == 1:
        return dict(arrays[0])
    return {name: np.concatenate([some[name] for some in arrays]) for name in arrays[0]}


def write_piece(files: NewFiles, piece: Piece) -> SegmentRecord:
    """Write a segment's files; raises OSError."""
    prepared = piece.prepared_arrays()
    return SegmentRecord(
        np.ones(len(piece.ids), bool),
        files.write(piece.vector_arrays()),
        files.write(piece.row_arrays()),
        None if prepared is None else files.write(prepared),
    )
