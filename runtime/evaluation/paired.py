"""How sure the difference between two models' recalls is, which were computed over the same images and captions.

Other images would have given other recalls. How far they would have moved is estimated by resampling the images with
their captions (the paired bootstrap; Efron and Tibshirani, An Introduction to the Bootstrap, 1993): each resample draws
as many images as there are, with replacement, and the recalls of both models are counted over those. So captions of one
image stay together, and what makes an image hard for both models cancels. The answers that each query is ranked among
stay as they are.

What no image shows could still happen with other ones, the sooner the fewer images there are. So a resample also has
made-up images: on average half of one that only the base answers right, and half of one that only the other model does,
in all its queries. For a single recall this is what Agresti and Min (Statistics in Medicine, 2005) add to the four
counts of two paired proportions. Where two models answer all of 1,000 images alike, the interval is -0.2 to +0.2 for
each recall, and -1.2 to +1.2 for the sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

CUTS = (1, 5, 10)
FIGURES = tuple(f"{direction} R@{cut}" for direction in ("i2t", "t2i") for cut in CUTS)
RSUM = "rsum"
COVERED = 95  # of 100 resamples lie in an interval
_DRAWS = 1 << 21  # images drawn at once


@dataclass(frozen=True, eq=False)
class PairedRanks:
    """The ranks of two models, counted from 0, over images that are ranked together.

    Attributes:
        i2t: of the best caption of each image, int64 [2, I].
        t2i: of the image of each caption, int64 [2, C].
        owner: the image of each caption, int64 [C], ascending; each of 0 to I - 1 has one.
    """

    i2t: NDArray[np.int64]
    t2i: NDArray[np.int64]
    owner: NDArray[np.int64]


@dataclass(frozen=True)
class Difference:
    """A recall of two models in percent, or the sum of all six.

    Attributes:
        base, other: over all images.
        low, high: the interval in which other - base lies in COVERED of 100 resamples.
        only_base, only_other: how many queries only one of them answers right; None for the sum.
    """

    base: float
    other: float
    low: float
    high: float
    only_base: int | None = None
    only_other: int | None = None

    @property
    def difference(self) -> float:
        """other - base."""
        return self.other - self.base


def paired_differences(blocks: Sequence[PairedRanks], resamples: int = 10_000, seed: int = 0) -> dict[str, Difference]:
    """The differences of FIGURES and of RSUM, by name.

    Args:
        blocks: one, or the folds, whose recalls are averaged; images are drawn within each.
        resamples: how many.
        seed: of the draws.

    Raises:
        InputError: no block, or no resample.
    """
    if not blocks or resamples < 1:
        raise InputError(f"there must be a block and a resample, got {len(blocks)} and {resamples}")
    rng = np.random.default_rng(seed)
    recalls = np.zeros((2, len(FIGURES)))
    moves = np.zeros((resamples, len(FIGURES)))
    alone = np.zeros((2, len(FIGURES)), np.int64)
    for block in blocks:
        images = block.i2t.shape[1]
        of_images, of_captions = (ranks[..., None] < np.array(CUTS) for ranks in (block.i2t, block.t2i))
        own = np.add.reduceat(of_captions, np.searchsorted(block.owner, np.arange(images)), axis=1, dtype=np.float64)
        right = np.concatenate([of_images, own], axis=2)  # by image
        queries = np.stack([np.ones(images), np.bincount(block.owner)], axis=1)
        recalls += _percent(right.sum(axis=1), queries.sum(axis=0))
        moves += _resampled(right[1] - right[0], queries, resamples, rng)
        for model in (0, 1):
            alone[model] += np.concatenate(
                [(hits[model] & ~hits[1 - model]).sum(axis=0) for hits in (of_images, of_captions)]
            )
    recalls, moves = recalls / len(blocks), moves / len(blocks)
    edges = _edges(moves, 100)
    found = {
        name: Difference(*recalls[:, place].tolist(), *edges[:, place].tolist(), *alone[:, place].tolist())
        for place, name in enumerate(FIGURES)
    }
    edges = _edges(moves.sum(axis=1), 100 * len(FIGURES))
    return found | {RSUM: Difference(*recalls.sum(axis=1).tolist(), *edges.tolist())}


def rsum_if_alike(images: int, folds: int = 1) -> float:
    """About how far the interval of RSUM reaches from 0 where two models answer all images alike.

    Only made-up images move RSUM then. In each fold their numbers differ by a variable with a variance of 1, and each
    is worth 600 / images.
    """
    return 1200 * math.sqrt(folds) / images


def _percent(right: NDArray[np.float64], queries: NDArray[np.float64]) -> NDArray[np.float64]:
    """Recalls [..., FIGURES] of right answers [..., FIGURES] among queries [..., 2] of the two directions."""
    return 100 * right / np.repeat(queries, len(CUTS), axis=-1)


def _resampled(
    gained: NDArray[np.float64], queries: NDArray[np.float64], resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """How far the recalls differ in each resample [resamples, FIGURES], made-up images counted.

    Args:
        gained: right answers of each image [I, FIGURES] that the other model has more than the base.
        queries: of each image in both directions [I, 2].
        resamples: how many.
        rng: draws the images.
    """
    images = len(gained)
    moves = np.empty((resamples, len(FIGURES)))
    step = max(1, _DRAWS // images)
    for first in range(0, resamples, step):
        count = min(step, resamples - first)
        drawn = rng.integers(images, size=(count, images)) + images * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * images).reshape(count, images).astype(np.float64)
        moves[first : first + count] = _percent(times @ gained, times @ queries)
    more, fewer = rng.poisson(0.5, (2, resamples, 1))
    moves += 100 / images * (more - fewer)
    return moves


def _edges(moves: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """The ends of the interval that holds COVERED of 100 resamples [resamples, ...]: [2, ...].

    Where images are few, the made-up ones lead beyond `most`, the largest difference there can be: it ends there.
    """
    outside = (100 - COVERED) / 2
    edges: NDArray[np.float64] = np.percentile(moves, [outside, 100 - outside], axis=0).clip(-most, most)
    return edges
