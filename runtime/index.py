"""Fill a gallery from a source, so that an interrupted run can go on, and prepare its fast search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .errors import InputError
from .gallery import GalleryWriter
from .gallery.prepare import MIN_ROWS, FastScan
from .matcher import Matcher
from .skipped import MAX_BAD, Skipped, SkippedItem
from .sources import Source

# Rows encoded and committed at once: what an interrupted run loses at most. 256 rows of 36 x 1024 regions are 48 MB.
COMMIT_ROWS = 256
# Captions that choose and measure the fast scan, evenly spread: a recall of 0.999 over 100 x 10 hits is one miss.
FAST_QUERIES = 200


@dataclass(frozen=True)
class IndexResult:
    """What a run over a source did.

    Attributes:
        encoded: rows that were encoded and committed.
        known: rows that the gallery had already.
        skipped: what could not be encoded, with the reasons.
    """

    encoded: int
    known: int
    skipped: tuple[SkippedItem, ...]


def index_source(
    writer: GalleryWriter,
    matcher: Matcher,
    source: Source,
    *,
    replace: bool = False,
    max_bad: int = MAX_BAD,
    progress: Callable[[int, int], None] | None = None,
) -> IndexResult:
    """Encode what the gallery does not have yet, and commit it 256 rows at a time.

    A run that was interrupted keeps what it committed; the same call goes on from there.

    Args:
        writer: of a gallery of the source's kind.
        matcher: of the gallery's model.
        source: the rows.
        replace: encode the rows that the gallery has again, too.
        max_bad: how many rows may be unreadable.
        progress: called with the rows finished and the rows there are to encode.

    Raises:
        InputError: the source is of the other kind; more than `max_bad` rows cannot be encoded, or none can.
        GalleryError: the gallery cannot be written; what was committed before is kept.
    """
    if source.kind != writer.settings.kind:
        raise InputError(f"kind must be this gallery's {writer.settings.kind}, got {source.kind}")
    skipped = Skipped(max_bad)
    for item in source.skipped:
        skipped.add(item)
    known = set() if replace else writer.ids(source.ids)
    rows = [row for row, id in enumerate(source.ids) if id not in known]
    encoded = 0
    for begin in range(0, len(rows), COMMIT_ROWS):
        part = rows[begin : begin + COMMIT_ROWS]
        done = source.encode(matcher, part)
        if done.embeddings is not None:
            ids, metadata = [source.ids[row] for row in done.rows], [source.metadata[row] for row in done.rows]
            writer.add(ids, done.embeddings, metadata, overwrite=replace)
            encoded += len(ids)
        for problem in done.problems:
            skipped.add(problem)
        if progress is not None:
            progress(begin + len(part), len(rows))
    if encoded:
        writer.compact()
    elif skipped.items and not known:
        first = skipped.items[0]
        raise InputError(f"none of {len(skipped)} items could be read; the first: {first.item}: {first.reason}")
    return IndexResult(encoded, len(source.ids) - len(rows), skipped.items)


def prepare_fast_search(writer: GalleryWriter, matcher: Matcher, queries: Sequence[str] = ()) -> FastScan | None:
    """Fit fast search to a gallery that is large enough to gain from it, and measure its recall.

    Args:
        writer: of the gallery.
        matcher: of its model.
        queries: captions for a gallery of images; 200 of them, evenly spread, choose and measure. Without queries the
            recall is unknown.

    Returns:
        The fast scan, or None where the gallery is too small (below 1,000 rows) or its coding has no fast search (VSA).

    Raises:
        InputError: a query without a word.
        GalleryError: the gallery cannot be written.
    """
    if len(writer) < MIN_ROWS or writer.settings.alignment.coding == "VSA":
        return None
    chosen = queries[:: max(1, len(queries) // FAST_QUERIES)][:FAST_QUERIES]
    return writer.prepare_fast(matcher.encode_texts(chosen) if chosen and writer.settings.kind == "images" else None)
