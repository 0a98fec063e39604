"""Fill a gallery from a source, so that an interrupted run can go on, and prepare its search."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..counts import counted
from ..data.fitting import cut_texts
from ..embeddings import Embeddings
from ..errors import InputError
from ..gallery import Gallery, RowWriter
from ..gallery.compiled import core_searches
from ..gallery.prepare import Preparation
from ..matcher import Matcher
from ..progress import Progress
from ..skipped import MAX_BAD, Skipped, SkippedItem
from .identity import SOURCE, Known, Plan, add_digest, compare
from .sources import Source

_log = logging.getLogger(__name__)

# Rows encoded and committed at once: what an interrupted run loses at most. 256 rows of 36 x 1024 regions are 48 MB.
COMMIT_ROWS = 256
# Captions that fit search, and measure it, evenly spread.
QUERIES = 200
MIN_ROWS = 256  # from which on a search is prepared without being asked: below, all takes a fraction of a millisecond
# Captions that `chan gallery prepare` takes of those it is given: more would cost time and tell nothing new.
MOST_QUERIES = 2000
_ENCODED_AT_ONCE = 64  # of similar length, so that one long caption does not pad them all


@dataclass(frozen=True)
class IndexResult:
    """What a run over a source did.

    Attributes:
        added: rows that the gallery did not have.
        refreshed: rows that were encoded again, since their content changed or `replace` asked for it.
        moved: rows that keep their vectors under a new id, because their file lies elsewhere now.
        unchanged: rows that the gallery had already.
        relabeled: how many of `unchanged` have other metadata now.
        missing: ids of rows whose items the source no longer has.
        removed: whether the rows of `missing` were removed.
        skipped: what could not be encoded, with the reasons.
    """

    added: int
    refreshed: int
    moved: int
    unchanged: int
    relabeled: int
    missing: tuple[str, ...]
    removed: bool
    skipped: tuple[SkippedItem, ...]

    @property
    def encoded(self) -> int:
        """Rows that were encoded and committed."""
        return self.added + self.refreshed


def index_source(
    writer: RowWriter,
    matcher: Matcher,
    source: Source,
    *,
    replace: bool = False,
    prune: bool = False,
    max_bad: int = MAX_BAD,
    progress: Progress | None = None,
) -> IndexResult:
    """Bring a gallery up to date with a source: add, refresh, rename, and with `prune` remove rows.

    New and changed items are encoded and committed 256 rows at a time. A run that was interrupted keeps what it
    committed; the same call continues from there.

    Args:
        writer: of a gallery of the source's kind.
        matcher: of the gallery's model.
        source: the rows.
        replace: encode the rows that the gallery has again, too.
        prune: remove the rows whose items the source no longer has.
        max_bad: how many rows may be unreadable.
        progress: called with the rows that are encoded, those of a commit in several steps, and the rows there are to
            encode.

    Raises:
        InputError: the source is of the other kind; more than `max_bad` rows cannot be encoded, or none can.
        GalleryError: the gallery cannot be written; what was committed before is kept.
    """
    if source.kind != writer.settings.kind:
        raise InputError(f"kind must be this gallery's {writer.settings.kind}, got {source.kind}")
    skipped = Skipped(max_bad)
    for left_out in source.skipped:
        skipped.add(left_out)
    plan = plan_source(writer, source)
    items, old = plan.to_encode(replace)
    writer.relabel(plan.relabels, plan.roots)
    done = {True: 0, False: 0}  # rows encoded, by whether the gallery had them
    if progress is not None and items:
        progress(0, len(items))  # the first commit may be a minute away
    for begin in range(0, len(items), COMMIT_ROWS):
        part = items[begin : begin + COMMIT_ROWS]
        tick = None if progress is None else partial(_report, progress, begin, len(items))
        for item in encode_items(writer, matcher, source, plan.ids, plan.metadata, part, skipped, tick):
            done[item in old] += 1
        _log.debug("committed items %d to %d of %d", begin + 1, begin + len(part), len(items))
        if progress is not None:
            progress(begin + len(part), len(items))
    if prune and plan.missing:
        writer.delete(plan.missing)
    if sum(done.values()) or (prune and plan.missing):
        writer.compact()
    elif skipped.items and not plan.kept:
        raise nothing_readable(skipped)
    return result_of(plan, done[False], done[True], replace, prune, skipped)


def result_of(plan: Plan, added: int, refreshed: int, replace: bool, prune: bool, skipped: Skipped) -> IndexResult:
    """What a run along a plan did; `replace` and `prune` as of `index_source`."""
    return IndexResult(
        added=added,
        refreshed=refreshed,
        moved=len(plan.moved),
        unchanged=0 if replace else len(plan.kept) - len(plan.moved),
        relabeled=0 if replace else plan.relabeled,
        missing=tuple(plan.missing),
        removed=prune,
        skipped=skipped.items,
    )


def encode_items(
    writer: RowWriter,
    matcher: Matcher,
    source: Source,
    ids: Sequence[str],
    metadata: Sequence[dict[str, Any]],
    items: Sequence[int],
    skipped: Skipped,
    progress: Callable[[int], object] | None = None,
) -> Sequence[int]:
    """Encode some items of a source and add them in one commit.

    Args:
        writer: of a gallery of the source's kind.
        matcher: of the gallery's model.
        source: the rows.
        ids, metadata: of all items of the source, as the gallery will keep them.
        items: the numbers of those to encode.
        skipped: gets those that cannot be encoded.
        progress: called with how many of them are encoded, before the last are and all are committed.

    Returns:
        The items that were added.

    Raises:
        InputError: more items than `skipped` allows cannot be encoded.
        GalleryError: the gallery cannot be written.
    """
    if source.origins:
        for item in items:  # before it is read to be encoded, so that the next run finds what changes from here on
            add_digest(source.origins[item], metadata[item][SOURCE])
    rows: list[int] = []
    embeddings: list[Embeddings] = []
    details: list[dict[str, Any]] = []
    problems: list[SkippedItem] = []
    tried = 0
    for piece in source.pieces(matcher, items):
        if tried and progress is not None:
            progress(tried)
        encoded = source.encode(matcher, piece)
        tried += len(piece)
        problems += encoded.problems
        if encoded.embeddings is not None:
            rows += encoded.rows
            embeddings.append(encoded.embeddings)
            details += [metadata[item] | place for item, place in zip(encoded.rows, encoded.places(), strict=True)]
    if rows:
        writer.add([ids[item] for item in rows], Embeddings.concatenate(embeddings), details, overwrite=True)
    for problem in problems:
        _log.info("skipped %s: %s", problem.item, problem.reason)
        skipped.add(problem)
    return rows


def _report(progress: Progress, before: int, total: int, done: int) -> None:
    """Progress of a run from that of one commit."""
    progress(before + done, total)


def nothing_readable(skipped: Skipped, noun: str = "item") -> InputError:
    """The error of a run that could not encode a single item."""
    first = skipped.items[0]
    return InputError(f"none of {counted(len(skipped), noun)} could be read; the first: {first.item}: {first.reason}")


def plan_source(writer: RowWriter, source: Source) -> Plan:
    """What is new, changed, moved and missing; where the id is all there is to a row, a known id is the row."""
    if source.origins:
        known = (Known(row.id, row.metadata) for row in writer.rows())
        return compare(source.origins, source.metadata, known, writer.roots, source.whole)
    there = writer.ids(source.ids)
    added = [item for item, id in enumerate(source.ids) if id not in there]
    return Plan(list(source.ids), [dict(row) for row in source.metadata], added, kept=there, roots=dict(writer.roots))


def prepare_search(writer: RowWriter, matcher: Matcher, queries: Sequence[str] = ()) -> Preparation | None:
    """Fit search to a gallery that is large enough to gain from it, and measure what it reads.

    Args:
        writer: of the gallery.
        matcher: of its model.
        queries: captions for a gallery of images; 200 of them, evenly spread, choose and measure. Those of more words
            than the model takes are cut. Without queries, a fit to the queries of an earlier run is kept. Where there
            is none, search is fitted to the directions that a calibrated bundle keeps, and nothing is measured.

    Returns:
        The preparation, or None where the gallery is too small (below 256 rows), keeps no fine copy, or scores every
        row anyway (VSA).

    Raises:
        InputError: a query without a word.
        GalleryError: the gallery cannot be written.
    """
    settings = writer.settings
    if len(writer) < MIN_ROWS or not core_searches(settings):
        return None
    asked = encode_queries(matcher, queries, QUERIES) if settings.kind == "images" and queries else None
    if asked is None and (kept := kept_preparation(writer)) is not None:
        return kept
    return writer.prepare(asked, matcher.directions("captions" if settings.kind == "images" else "images"))


def kept_preparation(writer: RowWriter) -> Preparation | None:
    """How an earlier run fitted search to queries; None where none did.

    Rows that were added since are coded along the same axes, and a fit without queries would read more.
    """
    with Gallery.open(writer.path, threads=1) as gallery:
        prepared = gallery.prepared
    return replace(prepared, kept=True) if prepared is not None and prepared.second is not None else None


def encode_queries(matcher: Matcher, captions: Sequence[str], most: int = MOST_QUERIES) -> Iterator[Embeddings]:
    """Word embeddings of `most` of the captions, evenly spread, in pieces that hold little padding.

    Captions of more words than the model takes are cut; a warning in the log counts them.

    Raises:
        InputError: a caption without a word.
    """
    chosen = [captions[i * len(captions) // most] for i in range(most)] if len(captions) > most else captions
    chosen, cut = cut_texts(chosen, matcher.tokenizer, matcher.max_words)
    if cut:
        longer = counted(len(cut), "query has", "queries have")
        _log.warning("%s more than %s, the rest was cut", longer, counted(matcher.max_words, "word"))
    chosen = sorted(chosen, key=len)
    for first in range(0, len(chosen), _ENCODED_AT_ONCE):
        yield matcher.encode_texts(chosen[first : first + _ENCODED_AT_ONCE])
