"""Fill a gallery with the embeddings of another model, so that an interrupted run can go on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..embeddings import Embeddings
from ..gallery import Gallery, RowWriter
from ..gallery.compiled import core_searches
from ..gallery.prepare import Preparation
from ..gallery.proof.bounds import MAX_VALUE
from ..gallery.proof.rows import kept_vectors
from ..gallery.store.rows import Relabel
from ..gallery.values import plain_text
from ..progress import Progress
from ..skipped import MAX_BAD, Skipped, SkippedItem
from .embedding_source import BYTES_AT_ONCE, EmbeddingRow, EmbeddingSource
from .index import MIN_ROWS, QUERIES, kept_preparation, nothing_readable


@dataclass(frozen=True)
class IndexedEmbeddings:
    """What a run over files of embeddings did.

    Attributes:
        added: rows that the gallery did not have.
        refreshed: rows that it had with other vectors.
        relabeled: rows that it had with these vectors and other metadata.
        unchanged: rows that it had as they are.
        padding: vectors of zeros that were left out of padded rows.
        norms: the smallest and the largest length of a vector.
        skipped: rows that cannot be read, with the reasons.
    """

    added: int
    refreshed: int
    relabeled: int
    unchanged: int
    padding: int
    norms: tuple[float, float]
    skipped: tuple[SkippedItem, ...]


def index_embeddings(
    writer: RowWriter,
    source: EmbeddingSource,
    *,
    max_bad: int = MAX_BAD,
    progress: Progress | None = None,
) -> IndexedEmbeddings:
    """Bring a gallery up to date with files of embeddings: add rows, and replace those whose vectors changed.

    Rows are read and committed some 64 MB at a time, whatever the size of the files, so a run that was interrupted
    keeps what it committed, and the same call continues from there.

    Args:
        writer: of the gallery.
        source: the rows.
        max_bad: how many rows may be unreadable.
        progress: called with the rows that are done and the rows there are.

    Raises:
        InputError: more than `max_bad` rows cannot be read, or none can; a file is damaged; its name, of which ids are
            made, is not UTF-8.
        GalleryError: the gallery cannot be written; what was committed before is kept.
    """
    for made_up in source.made_up:
        plain_text(source.ids[made_up[0]], "ids, made of a file's name")
    run = _Run(writer, Skipped(max_bad), writer.ids(source.ids))
    with Gallery.open(writer.path, threads=1) as gallery:
        done = 0
        for rows in _batches(run.valid(source.read())):
            run.put(rows, gallery)
            done += len(rows)
            if progress is not None:
                progress(done + len(run.skipped), len(source.ids))
    if not done:
        raise nothing_readable(run.skipped, "row")
    if run.added or run.refreshed:
        writer.compact()
    return IndexedEmbeddings(
        run.added, run.refreshed, run.relabeled, done - run.added - run.refreshed - run.relabeled,
        run.padding, run.norms, run.skipped.items,
    )  # fmt: skip


def prepare_embeddings(writer: RowWriter, queries: Embeddings | None = None) -> Preparation | None:
    """Fit search to a gallery that is large enough to gain from it, as `prepare_search`, which see.

    Args:
        writer: of the gallery.
        queries: 200 of them, evenly spread, choose and measure. Without them a fit to the queries of an earlier run is
            kept; where there is none, nothing is measured.
    """
    if len(writer) < MIN_ROWS or not core_searches(writer.settings):
        return None
    if queries is not None and len(queries) > QUERIES:
        queries = queries[[row * len(queries) // QUERIES for row in range(QUERIES)]]
    if queries is None and (kept := kept_preparation(writer)) is not None:
        return kept
    return writer.prepare(queries)


class _Run:
    """One run, and what it has done so far."""

    def __init__(self, writer: RowWriter, skipped: Skipped, known: set[str]) -> None:
        self.skipped = skipped
        self.added = self.refreshed = self.relabeled = self.padding = 0
        self.norms = (np.inf, 0.0)
        self._writer = writer
        self._known = known

    def valid(self, rows: Iterable[EmbeddingRow]) -> Iterator[EmbeddingRow]:
        """The rows that the gallery can hold; the others are skipped."""
        settings = self._writer.settings
        most = float(np.finfo(np.float16).max) if settings.fine == "float16" else MAX_VALUE
        for row in rows:
            problem = row.problem
            if row.vectors is not None and row.vectors.shape[1] != settings.dim:
                problem = f"D must be this gallery's {settings.dim}, got {row.vectors.shape[1]}"
            elif row.vectors is not None and np.abs(row.vectors).max() > most:
                problem = f"values must be at most {most:g} in size, got {np.abs(row.vectors).max():g}"
            if problem is None:
                yield row
            else:
                self.skipped.add(SkippedItem(row.id, problem))

    def put(self, rows: Sequence[EmbeddingRow], gallery: Gallery) -> None:
        """Add what is new, replace what has other vectors, and relabel what has other metadata, in two commits."""
        self._measure(rows)
        there = [row for row in rows if row.id in self._known]
        same, relabels = set[str](), []
        metadata = {row.id: row.metadata for row in rows}
        found = zip(there, gallery.find([row.id for row in there]), self._kept(there, gallery), strict=True)
        for row, stored, kept in found:
            metadata[row.id] = {**stored.metadata, **row.metadata}  # a run without metadata takes none away
            if np.array_equal(self._as_kept(vectors_of(row)), kept):
                same.add(row.id)
                if metadata[row.id] != stored.metadata:
                    relabels.append(Relabel(row.id, row.id, metadata[row.id]))
        new = [row for row in rows if row.id not in same]
        if new:
            embeddings = Embeddings.padded([vectors_of(row) for row in new], self._writer.settings.kind)
            self._writer.add([row.id for row in new], embeddings, [metadata[row.id] for row in new], overwrite=True)
        self._writer.relabel(relabels)
        self.refreshed += len(there) - len(same)
        self.added += len(rows) - len(there)
        self.relabeled += len(relabels)

    def _measure(self, rows: Sequence[EmbeddingRow]) -> None:
        for row in rows:
            norms = np.linalg.norm(vectors_of(row).astype(np.float64), axis=1)  # squares may leave float32's range
            self.norms = min(self.norms[0], float(norms.min())), max(self.norms[1], float(norms.max()))
            self.padding += row.padding

    def _kept(self, rows: Sequence[EmbeddingRow], gallery: Gallery) -> list[NDArray[np.float32]]:
        return gallery.embeddings([row.id for row in rows]).rows() if rows else []

    def _as_kept(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        return kept_vectors(vectors, np.array([0, len(vectors)]), self._writer.settings.fine)


def vectors_of(row: EmbeddingRow) -> NDArray[np.float32]:
    """The vectors of a row that could be read."""
    assert row.vectors is not None
    return row.vectors


def _batches(rows: Iterable[EmbeddingRow]) -> Iterator[list[EmbeddingRow]]:
    """Rows in groups of at most BYTES_AT_ONCE once they are padded to the longest, one row at least."""
    group: list[EmbeddingRow] = []
    longest = 0
    for row in rows:
        count, dim = vectors_of(row).shape
        if group and 4 * dim * max(longest, count) * (len(group) + 1) > BYTES_AT_ONCE:
            yield group
            group, longest = [], 0
        group.append(row)
        longest = max(longest, count)
    if group:
        yield group
