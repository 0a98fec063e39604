"""What a batch of jobs does: encode captions and pictures of all of them together, then search with what they want.

Captions are encoded in runs of similar length, so that little is computed on padding. Queries of one gallery that
search for the same share one scan. A job that fails does so alone: what was together is tried again one by one. What
nobody waits for any more, such as a request that took too long, is left between the steps, runs and scans of a batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import msgspec
import numpy as np

from ..runtime.counts import counted
from ..runtime.embeddings import Embeddings
from ..runtime.errors import ChanError
from ..runtime.gallery.result import SearchResult
from ..runtime.gallery.where import Filter
from ..runtime.matcher import Matcher
from .batching import Job
from .galleries import OpenGallery, ServedGallery
from .problems import Refusal

if TYPE_CHECKING:
    from PIL import Image

_Item = TypeVar("_Item")
# Queries of one scan, after which a batch that nobody waits for ends. 64 queries took 2 % more of the CPU in two scans
# than in one (0.25 s; 10,000 images at 1024-d, 2 cores of a Zen 4).
QUERIES = 32


class _Left(Exception):
    """Nobody waits any more for what is being done."""


@dataclass(frozen=True)
class Search:
    """What to search for, as in `Gallery.search`; queries that agree in it share a scan.

    like: the row that is the query, and not among the hits.
    """

    k: int
    where: Filter | None = None
    ids: tuple[str, ...] | None = None
    like: str | None = None


@dataclass(eq=False, kw_only=True)
class Work(Job):
    """Queries of one request, and what they are for.

    Attributes:
        opened: the gallery; the request holds it until the job is done.
        captions, pictures: to encode, one of them; pictures are of the size that the backbone reads.
        off: words of the one caption that take no part in the search.
        search: what to search for; None only encodes.
        embeddings: of the queries: given, or what encoding returned.
        results: one for each query.
        describe, answer: makes the body of the answer from the job once it is done, and from the gallery as it was
            searched; and that body as JSON.
        encode_seconds, search_seconds: that the batch took; what searches found is described in the latter.
    """

    opened: OpenGallery
    captions: Sequence[str] = ()
    pictures: Sequence[Image.Image] = ()
    off: Sequence[int] = ()
    search: Search | None = None
    embeddings: Embeddings | None = None
    results: list[SearchResult] = field(default_factory=list)
    describe: Callable[[Work, ServedGallery], msgspec.Struct] | None = None
    answer: bytes = b""
    encode_seconds: float = 0.0
    search_seconds: float = 0.0


def run_batch(jobs: Sequence[Work], words: int) -> None:
    """Encode and search for jobs; one that cannot be done gets its `error`.

    Args:
        jobs: of any galleries.
        words: the most words, padding included, that are encoded in one run.
    """
    held = [job for job in jobs if _hold(job)]
    try:
        _run(held, words)
    finally:
        for job in held:
            job.opened.release()


def _hold(job: Work) -> bool:
    """Hold a job's gallery for the batch; its request may have given up and let go of it."""
    held = job.opened.hold()
    if not held:
        job.error = Refusal(503, "closed", f"the gallery {job.opened.name} was closed")
    return held


def _run(jobs: Sequence[Work], words: int) -> None:
    begin = time.perf_counter()
    texts = [job for job in jobs if job.captions]
    pictures = [job for job in jobs if job.pictures]
    for group in _grouped(texts, lambda job: id(job.opened.need_matcher())):
        _encode(
            group, lambda job: job.captions, lambda matcher, items, check: encode_texts(matcher, items, words, check)
        )
    for group in _grouped(pictures, lambda job: id(job.opened.need_matcher())):
        _encode(group, lambda job: job.pictures, _encode_pictures)
    for job in jobs:
        if job.off:
            _attempt([job], _switch_off)
    middle = time.perf_counter()
    searching = [job for job in jobs if job.search is not None]
    for group in _grouped(searching, lambda job: (id(job.opened), job.search)):
        _attempt(group, _search)
    end = time.perf_counter()
    for job in jobs:
        job.encode_seconds, job.search_seconds = middle - begin, end - middle
        if job.search is None:
            _attempt([job], partial(_describe, job.opened.gallery))


def encode_texts(
    matcher: Matcher, captions: Sequence[str], words: int, check: Callable[[], None] = lambda: None
) -> Embeddings:
    """Encode captions in runs of similar length, each of at most `words` words with its padding.

    check: called before each run; what it raises ends the work.
    """
    lengths = [len(row) for row in matcher.tokenizer.rows(captions)]
    order = sorted(range(len(captions)), key=lengths.__getitem__)
    parts = []
    for run in _runs(order, lengths, words):
        check()
        parts.append(matcher.encode_texts([captions[i] for i in run]))
    place = np.argsort(np.array(order))
    return Embeddings.concatenate(parts)[place]


def _encode_pictures(matcher: Matcher, pictures: Sequence[Image.Image], check: Callable[[], None]) -> Embeddings:
    """Encode pictures, as many at a time as the backbone is given together; `check` as in `encode_texts`."""
    parts = []
    for piece in _pieces(pictures, matcher.pictures_at_once):
        check()
        parts.append(matcher.encode_pictures(piece))
    return Embeddings.concatenate(parts)


def _pieces(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    return (items[first : first + size] for first in range(0, len(items), size))


def _runs(order: Sequence[int], lengths: Sequence[int], words: int) -> Iterator[list[int]]:
    """Cut rows, in order of length, so that rows times the longest is at most `words`."""
    run: list[int] = []
    for row in order:
        if run and (len(run) + 1) * lengths[row] > words:
            yield run
            run = []
        run.append(row)
    yield run


def _encode(
    jobs: Sequence[Work],
    items_of: Callable[[Work], Sequence[_Item]],
    encode: Callable[[Matcher, Sequence[_Item], Callable[[], None]], Embeddings],
) -> None:
    def encode_all(group: Sequence[Work]) -> None:
        items = [item for job in group for item in items_of(job)]
        encoded = encode(group[0].opened.need_matcher(), items, partial(_check_wanted, group))
        row = 0
        for job in group:
            count = len(items_of(job))
            job.embeddings = encoded[row : row + count].trimmed()
            row += count

    _attempt(jobs, encode_all)


def _switch_off(jobs: Sequence[Work]) -> None:
    """Take the words that are off out of the query of the one job."""
    (job,) = jobs
    assert job.embeddings is not None
    length = int(job.embeddings.lengths[0])
    if max(job.off) >= length:
        raise Refusal(422, "off", f"off must be below the caption's {counted(length, 'word')}, got {max(job.off)}")
    kept = np.delete(job.embeddings.vectors[:, :length], list(job.off), axis=1)
    if not kept.shape[1]:
        raise Refusal(422, "off", f"off must leave a word of the caption, got all {length}")
    job.embeddings = Embeddings(kept, np.array([kept.shape[1]], np.int32), job.embeddings.kind)


def _search(jobs: Sequence[Work]) -> None:
    """Search for jobs that share a scan, and describe what they found: all of it from one commit."""
    jobs[0].opened.gallery.at_one_commit(partial(_search_commit, jobs))


def _search_commit(jobs: Sequence[Work], gallery: ServedGallery) -> None:
    search = jobs[0].search
    assert search is not None
    like = search.like
    if like is not None:
        row = gallery.embeddings([like])
        for job in jobs:
            job.embeddings = row
    queries = [job.embeddings for job in jobs if job.embeddings is not None]
    found: list[SearchResult] = []
    together = Embeddings.concatenate(queries)
    for rows in _pieces(range(len(together)), QUERIES):
        _check_wanted(jobs)
        found += gallery.search(
            together[rows],
            search.k + (like is not None),
            ids=search.ids,
            where=search.where,
            same_kind=like is not None,
        )
    results = iter(found if like is None else [result.without(like, search.k) for result in found])
    for job, query in zip(jobs, queries, strict=True):
        job.results = [next(results) for _ in range(len(query))]
    _describe(gallery, jobs)


def _describe(gallery: ServedGallery, jobs: Sequence[Work]) -> None:
    for job in jobs:
        if job.describe is not None:
            job.answer = msgspec.json.encode(job.describe(job, gallery))


def _attempt(jobs: Sequence[Work], do: Callable[[Sequence[Work]], None]) -> None:
    """Do something for all jobs that are still wanted, or where that fails for each alone."""
    jobs = [job for job in jobs if job.wanted]
    if not jobs:
        return
    try:
        do(jobs)
    except _Left:
        return
    except (ChanError, Refusal) as error:
        if len(jobs) == 1:
            jobs[0].error = error
            return
        for job in jobs:
            _attempt([job], do)


def _check_wanted(jobs: Sequence[Work]) -> None:
    """End what is being done where nobody waits for any of the jobs."""
    if not any(job.wanted for job in jobs):
        raise _Left


def _grouped(jobs: Iterable[Work], key: Callable[[Work], Hashable]) -> Iterable[list[Work]]:
    groups: dict[Hashable, list[Work]] = {}
    for job in jobs:
        groups.setdefault(key(job), []).append(job)
    return groups.values()
