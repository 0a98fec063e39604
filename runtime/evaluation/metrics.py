"""Recalls of image-text retrieval from a score matrix [I, C]: rows are images, columns are captions.

Image-to-text ranks all captions for each image and keeps the rank of the best of its own. Text-to-image ranks all
images for each caption and keeps the rank of its own image. Ranks start at 0. R@K is the percentage of ranks below K,
`medr = floor(median) + 1`, `meanr = mean + 1`, and `rsum` is the sum of the six recalls, as CHAN and SCAN report.

An image may have any number of captions, at least one. Image-to-text has a rank for each image and text-to-image one
for each caption, so an image with more captions has more weight in text-to-image, and is easier to answer in
image-to-text. With equally many captions for every image, as published, neither happens.

Ties: `lower` puts equal scores in the order of their index (the default), `published` in the reverse order. The
published code reverses NumPy's default sort, which is not stable, so its own order of ties may be a third one.
`optimistic` puts the right answer before its equals and `pessimistic` behind them, so the figures of every order of
ties lie between the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..checks import check_choice
from ..counts import counted
from ..errors import InputError, TensorError
from ..tensor_checks import check_unmasked

Ties = Literal["lower", "published", "optimistic", "pessimistic"]

# Rows compared at once: the temporaries stay near 32 MB whatever the matrix' size.
_BLOCK_BYTES = 32 << 20


@dataclass(frozen=True)
class Recalls:
    """One direction of retrieval: R@1, R@5 and R@10 in percent, and the median and mean rank, counted from 1."""

    r1: float
    r5: float
    r10: float
    medr: float
    meanr: float


@dataclass(frozen=True)
class Metrics:
    """Both directions: `i2t` image-to-text, `t2i` text-to-image."""

    i2t: Recalls
    t2i: Recalls

    @property
    def rsum(self) -> float:
        """Sum of the six recalls, at most 600."""
        return self.i2t.r1 + self.i2t.r5 + self.i2t.r10 + self.t2i.r1 + self.t2i.r5 + self.t2i.r10


def evaluate(scores: NDArray[Any], image_of_caption: NDArray[Any], ties: Ties = "lower") -> Metrics:
    """Compute the recalls of scores [I, C] in both directions; caption c belongs to image image_of_caption[c].

    `ties` is one of the orders that the head of this module lists.

    Raises:
        InputError: shapes that do not fit, a caption of no image, an image of no caption, an unknown tie order.
        TensorError: NaN among the scores.
    """
    i2t, t2i = ranks(scores, image_of_caption, ties)
    return Metrics(recalls(i2t), recalls(t2i))


def fold_slices(image_of_caption: NDArray[Any], num_images: int, folds: int) -> list[tuple[slice, slice]]:
    """Return the image rows and caption columns of each of `folds` consecutive blocks of equally many images.

    Raises:
        InputError: folds that do not divide the images, or captions that are not in the order of their images.
    """
    if folds < 1 or num_images % folds:
        raise InputError(f"folds must divide the {counted(num_images, 'image')}, got {folds}")
    if np.any(np.diff(image_of_caption) < 0):
        raise InputError("folds need captions in the order of their images")
    size = num_images // folds
    edges = np.searchsorted(image_of_caption, np.arange(folds + 1) * size)
    return [(slice(k * size, (k + 1) * size), slice(int(edges[k]), int(edges[k + 1]))) for k in range(folds)]


def mean_metrics(per_fold: list[Metrics]) -> Metrics:
    """Average every figure over the folds, as the published 1K protocol does."""

    def mean(direction: list[Recalls]) -> Recalls:
        rows = [(item.r1, item.r5, item.r10, item.medr, item.meanr) for item in direction]
        return Recalls(*(float(value) for value in np.mean(rows, axis=0)))

    return Metrics(mean([item.i2t for item in per_fold]), mean([item.t2i for item in per_fold]))


def recalls(query_ranks: NDArray[Any]) -> Recalls:
    """Compute R@1, R@5, R@10, medr and meanr of ranks that are counted from 0."""
    r1, r5, r10 = (100.0 * float(np.count_nonzero(query_ranks < k)) / len(query_ranks) for k in (1, 5, 10))
    return Recalls(r1, r5, r10, float(np.floor(np.median(query_ranks)) + 1), float(np.mean(query_ranks)) + 1)


def ranks(
    scores: NDArray[Any], image_of_caption: NDArray[Any], ties: Ties = "lower"
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Compute ranks from 0: i2t [I] of the best caption of each image, and t2i [C] of the image of each caption.

    Raises: as `evaluate`.
    """
    check_choice("ties", ties, get_args(Ties))
    owner = _checked(scores, image_of_caption)
    num_images, num_captions = scores.shape
    own_scores = np.asarray(scores[owner, np.arange(num_captions)])
    best = np.full(num_images, own_scores.min(), own_scores.dtype)  # integers have no infinity to begin with
    with np.errstate(invalid="ignore"):  # NaN is refused below, with its place
        np.maximum.at(best, owner, own_scores)
    # Among an image's own captions that share its best score, the one that the tie order puts first stands for it.
    is_best = own_scores == best[owner]
    columns = np.arange(num_captions)
    stand_in = np.full(num_images, num_captions if ties != "published" else -1, dtype=np.int64)
    choose = np.maximum if ties == "published" else np.minimum
    choose.at(stand_in, owner[is_best], columns[is_best])

    i2t = np.empty(num_images, dtype=np.int64)
    t2i = np.zeros(num_captions, dtype=np.int64)
    step = max(1, _BLOCK_BYTES // max(1, num_captions * scores.itemsize))
    for start in range(0, num_images, step):
        rows = np.arange(start, min(start + step, num_images))
        block = np.asarray(scores[start : start + step])
        if np.isnan(block).any():
            row, column = np.argwhere(np.isnan(block))[0]
            raise TensorError("scores", "must not be NaN", f"NaN at image {start + row}, caption {column}")
        foreign = owner[None, :] != rows[:, None]
        row_best = best[rows, None]
        i2t[rows] = _ahead(block, row_best, columns[None, :], stand_in[rows, None], foreign, ties).sum(axis=1)
        t2i += _ahead(block, own_scores[None, :], rows[:, None], owner[None, :], foreign, ties).sum(axis=0)
    return i2t, t2i


def _ahead(
    block: NDArray[Any],
    right: NDArray[Any],
    index: NDArray[np.int64],
    right_index: NDArray[np.int64],
    foreign: NDArray[np.bool_],
    ties: Ties,
) -> NDArray[np.bool_]:
    """Mark the entries of a block that rank before the right answer, whose score and index are given."""
    ahead: NDArray[np.bool_] = block > right
    if ties == "optimistic":
        return ahead
    tied: NDArray[np.bool_] = (block == right) & foreign
    if ties == "lower":
        tied &= index < right_index
    elif ties == "published":
        tied &= index > right_index
    return ahead | tied


def _checked(scores: NDArray[Any], image_of_caption: NDArray[Any]) -> NDArray[np.int64]:
    """image_of_caption as int64 [C], once it is known to fit the scores."""
    if not isinstance(scores, np.ndarray) or scores.dtype.kind not in "biuf":
        found = scores.dtype if isinstance(scores, np.ndarray) else type(scores).__name__
        raise TensorError("scores", "must be a numpy array of real numbers", found)
    check_unmasked("scores", scores)
    if scores.ndim != 2 or 0 in scores.shape:
        raise TensorError("scores", "must be a matrix of images by captions, neither empty", f"shape {scores.shape}")
    return check_owner(image_of_caption, *scores.shape)


def check_owner(image_of_caption: NDArray[Any], num_images: int, num_captions: int) -> NDArray[np.int64]:
    """image_of_caption as int64 [C], once it is known to give every caption an image, and every image a caption.

    Raises:
        TensorError: it does not.
    """
    check_unmasked("image_of_caption", image_of_caption)
    owner = np.asarray(image_of_caption)
    if owner.shape != (num_captions,) or owner.dtype.kind not in "iu":
        raise TensorError(
            "image_of_caption",
            f"must be one image row for each of the {counted(num_captions, 'caption')}",
            f"{owner.dtype} {owner.shape}",
        )
    if owner.min() < 0 or owner.max() >= num_images:
        value = f"{owner.min()} to {owner.max()}"
        raise TensorError("image_of_caption", f"must lie in 0 to {num_images - 1}", value)
    owner = owner.astype(np.int64)
    captions_per_image = np.bincount(owner, minlength=num_images)
    if not captions_per_image.all():
        missing = int(np.argmin(captions_per_image))
        raise TensorError("image_of_caption", "must give every image a caption", f"none for image {missing}")
    return owner
