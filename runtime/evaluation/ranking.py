"""The ranks of a split without its scores [I, C]: bounds from a few bytes of each vector decide most pairs.

An image's rank depends on which captions reach the score of its best own caption, and a caption's on which images reach
the score of its own. So the score of each caption with its own image comes first, and then every pair that reaches one
of its two thresholds (`CompiledSearch.above`). Scores are those of a certified search, float64 of the float32
embeddings, so the ranks are those of `metrics.ranks` of the whole matrix of such scores, ties included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..contract import AlignmentConfig
from ..cpus import usable_cpus
from ..data.images import CaptionedImages
from ..gallery.compiled import CompiledSearch, CoreThreads, open_core
from ..gallery.prepare import plan_for
from ..gallery.proof.gallery_rows import GalleryRows
from ..gallery.proof.rows import array_part, pack_rows
from .metrics import Ties, check_owner
from .streaming import IMAGES, Encoder, OnProgress, encode_captions

_SAMPLE = 4000  # vectors of each side that the axes and steps of the bounds are fitted to
_PAIRS = 1 << 19  # of one call of compiled code, which cannot be interrupted
_LEAST = 64  # captions of a call: the core scans that many together

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Standing:
    """Where the right answers of one direction stand among all answers; each array is int64 [n], one entry a query.

    Attributes:
        ahead: answers with a higher score than the right one, the best where there are several.
        before: wrong answers of the same score that have a lower index than every right answer of that score.
        behind: wrong answers of the same score that have a higher index than every right answer of that score.
        tied: wrong answers of the same score.
    """

    ahead: Integers
    before: Integers
    behind: Integers
    tied: Integers

    @staticmethod
    def of(count: int) -> Standing:
        """Of `count` queries, before any answer was counted."""
        return Standing(*np.zeros((4, count), np.int64))

    def count(
        self,
        queries: Integers,
        answers: Integers,
        scores: NDArray[np.float64],
        right: tuple[NDArray[np.float64], Integers, Integers],
        foreign: NDArray[np.bool_],
    ) -> None:
        """Count some pairs of a query and an answer.

        Args:
            queries, answers: int64 [pairs].
            scores: float64 [pairs].
            right: of each query [n], the score of the right answer, and its lowest and its highest index.
            foreign: [pairs], whether the answer is wrong.
        """
        score, lowest, highest = (of_query[queries] for of_query in right)
        tied = foreign & (scores == score)
        for total, mark in (
            (self.ahead, scores > score),
            (self.before, tied & (answers < lowest)),
            (self.behind, tied & (answers > highest)),
            (self.tied, tied),
        ):
            np.add.at(total, queries[mark], 1)

    def ranks(self, ties: Ties) -> Integers:
        """Ranks from 0 [n] in an order of ties; see metrics.py."""
        match ties:
            case "lower":
                return self.ahead + self.before
            case "published":
                return self.ahead + self.behind
            case "optimistic":
                return self.ahead
        return self.ahead + self.tied


@dataclass(frozen=True, eq=False)
class Standings:
    """Both directions: `i2t` of each image [I], `t2i` of each caption [C]."""

    i2t: Standing
    t2i: Standing

    def ranks(self, ties: Ties) -> tuple[Integers, Integers]:
        """What `metrics.ranks` returns for the scores."""
        return self.i2t.ranks(ties), self.t2i.ranks(ties)


def can_rank(alignment: AlignmentConfig) -> bool:
    """Whether `rank_blocks` can rank by these scores: the core was built, and the coding is not VSA."""
    return alignment.coding != "VSA" and open_core() is not None


def is_faster(alignment: AlignmentConfig) -> bool:
    """Whether `rank_blocks` can rank by these scores, and sooner than computing all of them takes.

    Of Softmax pooling the first bounds know no more than the largest similarity, so they exclude few pairs.
    """
    return can_rank(alignment) and alignment.pooling != "Softmax"


def rank_blocks(
    encoder: Encoder,
    images: CaptionedImages,
    blocks: Sequence[tuple[slice, slice]],
    *,
    on_progress: OnProgress | None = None,
) -> Iterator[Standings]:
    """Yield the standings of each block of (image rows, caption columns); `can_rank` must hold.

    An image and a caption are encoded once for each block they are in. Memory holds the words and regions of a block
    without padding, and codes of the regions.

    Args:
        encoder: what is evaluated; its embeddings are scored on the CPU.
        images: with their captions.
        blocks: slices with start and stop, as `streaming.score_blocks` takes them.
        on_progress: called after each piece of work. Encoding the captions, encoding the images and ranking each count
            as going through all pairs, so there are three times as many to do.

    Raises:
        ChanError: as the encoder and `images` raise it, and for embeddings that are not finite.
    """
    total = 3 * sum((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in blocks)
    done = 0

    def show(pairs: int) -> None:
        nonlocal done
        done += pairs
        if on_progress is not None:
            on_progress(done, total)

    for rows, columns in blocks:
        num_images, num_captions = rows.stop - rows.start, columns.stop - columns.start
        owner = check_owner(images.image_of_caption[columns] - rows.start, num_images, num_captions)
        places: list[int] = []
        words: list[Floats] = []
        for some, texts in encode_captions(encoder, images.captions[columns]):
            vectors, starts = pack_rows(texts.vectors, texts.lengths, "word_embeddings")
            words += np.split(vectors, starts[1:-1])
            places += some.tolist()
            show(len(some) * num_images)
        regions: list[tuple[Floats, Integers]] = []
        for first in range(rows.start, rows.stop, IMAGES):
            here = encoder.encode_images(*images.regions(slice(first, min(first + IMAGES, rows.stop))))
            regions.append(pack_rows(here.vectors, here.lengths, "region_embeddings"))
            show(len(here) * num_captions)
        threads = CoreThreads()
        search = _search(regions, words, encoder.alignment, threads)
        try:
            yield _standings(search, words, np.array(places), owner, num_images, show)
        finally:
            threads.close()


def _search(
    regions: Sequence[tuple[Floats, Integers]],
    words: Sequence[Floats],
    alignment: AlignmentConfig,
    threads: CoreThreads,
) -> CompiledSearch:
    """A gallery whose parts are the entries of `regions`, with bounds that are fitted to them and to the words."""
    vectors = [packed for packed, _ in regions]
    plan = plan_for(_sample(vectors), _sample(words), vectors)
    with ThreadPoolExecutor(usable_cpus()) as pool:  # numpy computes without Python's lock, on one core
        parts = list(pool.map(lambda piece: array_part(piece[0], piece[1], plan=plan), regions))
    return CompiledSearch(GalleryRows(parts, "images", alignment), plan, threads)


def _sample(pieces: Sequence[Floats]) -> Floats:
    """About _SAMPLE evenly spaced rows of pieces [n, D] one after another; at least one."""
    step = max(1, sum(map(len, pieces)) // _SAMPLE)
    starts = np.cumsum([0] + [len(piece) for piece in pieces])
    return np.concatenate([piece[-start % step :: step] for piece, start in zip(pieces, starts, strict=False)])


def _standings(
    search: CompiledSearch,
    words: Sequence[Floats],
    places: Integers,
    owner: Integers,
    num_images: int,
    show: Callable[[int], None],
) -> Standings:
    """The standings of captions `words`, of which number i is the caption places[i], and the rows of `search`."""
    num_captions = len(owner)
    step = max(_LEAST, _PAIRS // num_images)
    turns = [slice(first, first + step) for first in range(0, num_captions, step)]
    own = np.empty(num_captions)
    for turn in turns:
        own[places[turn]] = search.scores(words[turn], owner[places[turn]])
    best = np.full(num_images, -np.inf)
    np.maximum.at(best, owner, own)
    leaders = np.flatnonzero(own == best[owner])
    lowest, highest = np.full(num_images, num_captions), np.full(num_images, -1)
    np.minimum.at(lowest, owner[leaders], leaders)
    np.maximum.at(highest, owner[leaders], leaders)

    found = Standings(Standing.of(num_images), Standing.of(num_captions))
    for turn in turns:
        counts, rows, scores = search.above(words[turn], own[places[turn]], best)
        captions = np.repeat(places[turn], counts)
        foreign = owner[captions] != rows
        found.i2t.count(rows, captions, scores, (best, lowest, highest), foreign)
        found.t2i.count(captions, rows, scores, (own, owner, owner), foreign)
        show(len(counts) * num_images)
    return found
