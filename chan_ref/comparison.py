"""Two models over the same images and captions: how far their recalls differ, and how sure that is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..runtime.data.images import CaptionedImages
from ..runtime.errors import InputError
from ..runtime.evaluation import metrics
from ..runtime.evaluation.paired import Difference, PairedRanks, paired_differences
from .evaluation import check_fits, open_encoder, rank_models


@dataclass(frozen=True)
class Candidate:
    """A model and what it is evaluated on.

    Attributes:
        path: folder of a bundle or a checkpoint.
        images: a split with the region features that it reads.
        backend, precision, device: of a bundle, as in `Matcher.open`.
    """

    path: Path
    images: CaptionedImages
    backend: str = "auto"
    precision: str = "fp32"
    device: str = "cuda"


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a split says of two models.

    Attributes:
        differences: by the names of `paired.FIGURES`, and `rsum`.
        ranks: of the image of each caption, from 0, base's and other's: int64 [2, C].
        cut: for each model, how many captions were cut because it does not take so many words.
        seconds: that encoding and scoring took.
    """

    differences: dict[str, Difference]
    ranks: NDArray[np.int64]
    cut: tuple[int, int]
    seconds: float

    def moved(self, most: int) -> tuple[list[int], list[int]]:
        """At most so many captions whose image fell furthest, and whose image rose furthest, by the ratio of ranks."""
        ratio = (self.ranks[1] + 1) / (self.ranks[0] + 1)
        fell = [int(place) for place in np.argsort(-ratio, kind="stable")[:most] if ratio[place] > 1]
        rose = [int(place) for place in np.argsort(ratio, kind="stable")[:most] if ratio[place] < 1]
        return fell, rose


def compare_models(
    base: Candidate,
    other: Candidate,
    *,
    folds: int = 1,
    ties: metrics.Ties = "lower",
    strict: bool = False,
    resamples: int = 10_000,
    on_progress: Callable[[int, int, int], None] | None = None,
) -> Comparison:
    """Rank the same captions and images by two models.

    Args:
        base, other: the models.
        folds: blocks of images that are ranked apart, as in `evaluate_models`.
        ties: which of equal scores ranks first.
        strict: refuse captions of more words than a model takes; otherwise they are cut.
        resamples: as in `paired_differences`.
        on_progress: called with 0 for base or 1 for other, how much of its work is done, and how much there is.

    Raises:
        InputError: the images of the two do not have the same captions, or as `evaluate_models` raises it.
        ChanError: as opening and running the models raise it.
    """
    _check_same(base.images, other.images)
    owner, count = base.images.image_of_caption, base.images.num_images
    blocks = metrics.fold_slices(owner, count, folds)
    for each in (base, other):
        check_fits(each.images, each.path)
    started = time.perf_counter()
    ranks: list[list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = []
    cut: list[int] = []
    for number, each in enumerate((base, other)):

        def show(_: int, done: int, total: int, number: int = number) -> None:
            if on_progress is not None:
                on_progress(number, done, total)

        opening = partial(open_encoder, backend=each.backend, precision=each.precision, device=each.device)
        ranked, _, shortened = rank_models([each.path], opening, each.images, blocks, strict, True, show)
        ranks.append([of_block(ties) for of_block in ranked])
        cut += shortened
    seconds = time.perf_counter() - started
    paired = []
    for ours, theirs, (rows, columns) in zip(*ranks, blocks, strict=True):
        i2t, t2i = map(np.stack, zip(ours, theirs, strict=True))
        paired.append(PairedRanks(i2t, t2i, owner[columns] - rows.start))
    of_captions = np.concatenate([block.t2i for block in paired], axis=1)
    return Comparison(paired_differences(paired, resamples), of_captions, (cut[0], cut[1]), seconds)


def _check_same(base: CaptionedImages, other: CaptionedImages) -> None:
    """InputError unless both have the same captions of the same images."""
    if base is other:
        return
    ours, theirs = ((each.num_images, each.num_captions) for each in (base, other))
    if ours != theirs:
        raise InputError(
            f"{base.source} and {other.source} must have the same images and captions, got {ours[0]} images and "
            f"{ours[1]} captions, and {theirs[0]} and {theirs[1]}"
        )
    places = enumerate(zip(base.captions, other.captions, base.image_of_caption == other.image_of_caption, strict=True))
    place = next((place for place, (a, b, same) in places if a != b or not same), None)
    if place is not None:
        raise InputError(
            f"{base.source} and {other.source} must have the same captions in the same order: caption {place + 1} is "
            f"{base.captions[place]!r} and {other.captions[place]!r}"
        )
    if base.image_ids is not None and other.image_ids is not None and base.image_ids != other.image_ids:
        place = next(i for i, (a, b) in enumerate(zip(base.image_ids, other.image_ids, strict=True)) if a != b)
        raise InputError(
            f"{base.source} and {other.source} must have the same images in the same order: image {place + 1} is "
            f"{base.image_ids[place]!r} and {other.image_ids[place]!r}"
        )
