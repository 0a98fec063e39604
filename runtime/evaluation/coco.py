"""CxC and ECCV Caption on the COCO 5K test, through the `eccv-caption` package and the ground truth it carries.

Both count more captions as right than the five that came with an image. CxC (Parekh et al. 2021) takes them from human
ratings of pairs. ECCV Caption (Chun et al. 2022) takes them from matches that models found and people checked, and
reports mAP@R and R-Precision.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..counts import counted
from ..errors import InputError
from ..extras import needs

# The package reads the first R entries of a list, R being the number of right answers: at most 48 captions, 19 images.
_CAPTIONS, _IMAGES = 50, 20
_PER_IMAGE = 5
_COLUMNS = 256  # turned into rows at once


@dataclass(frozen=True)
class Directions:
    """One figure in both directions, in percent."""

    i2t: float
    t2i: float


def extended_metrics(
    scores: NDArray[Any], image_ids: Sequence[str], image_of_caption: NDArray[Any]
) -> dict[str, Directions]:
    """Compute cxc_r1, cxc_r5, cxc_r10, eccv_r1, eccv_rprecision and eccv_map_at_r of scores [5000, 25000], in percent.

    The captions of an image must stand in the order of the COCO 5K test (Karpathy's, as every copy of the precomp data
    has them): the files carry no caption ids, so they are taken from that order.

    Args:
        scores: [I, C].
        image_ids: COCO ids of the images.
        image_of_caption: [C].

    Raises:
        InputError: images or captions that are not those of the COCO 5K test.
        BackendError: `eccv-caption` is not installed.
    """
    judge = _judge()
    rows, captions = _coco_ids(judge, image_ids, image_of_caption)
    images = rows.tolist()
    i2t = {image: captions[first(scores[row], _CAPTIONS)].tolist() for row, image in enumerate(images)}
    t2i = {}
    for start in range(0, len(captions), _COLUMNS):
        block = np.ascontiguousarray(scores[:, start : start + _COLUMNS].T)  # a column alone is a cache miss a score
        for name, column in zip(captions[start:].tolist(), block, strict=False):
            t2i[name] = rows[first(column, _IMAGES)].tolist()
    # The package returns eccv_rprecision only together with eccv_map_at_r, and it draws progress bars on stderr.
    wanted = ("cxc_recalls", "eccv_r1", "eccv_rprecision", "eccv_map_at_r")
    with contextlib.redirect_stderr(io.StringIO()):
        found = judge.compute_all_metrics(i2t, t2i, target_metrics=wanted, Ks=(1, 5, 10), verbose=False)
    return {name: Directions(100 * float(both["i2t"]), 100 * float(both["t2i"])) for name, both in found.items()}


def check_split(image_ids: Sequence[str], image_of_caption: NDArray[Any]) -> None:
    """Raise the errors of `extended_metrics` about a split before any score is computed."""
    _coco_ids(_judge(), image_ids, image_of_caption)


def _coco_ids(
    judge: Any, image_ids: Sequence[str], image_of_caption: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return COCO's ids of the images [5000] and of the captions [25000]."""
    captions_of: dict[int, list[int]] = {}
    for caption in judge.coco_ids.tolist():
        captions_of.setdefault(judge.coco_gts["t2i"][caption][0], []).append(caption)
    try:
        images = [int(name) for name in image_ids]
    except ValueError as error:
        raise InputError(f"image ids must be COCO's numbers: {error}") from error
    unknown = sorted(set(captions_of).symmetric_difference(images))
    if unknown or len(images) != len(captions_of):
        raise InputError(
            f"CxC and ECCV need the {counted(len(captions_of), 'image')} of the COCO 5K test, each once, got "
            f"{len(images)}, "
            f"with {counted(len(unknown), 'id')} too many or missing, such as {unknown[:3]}"
        )
    if not np.array_equal(image_of_caption, np.repeat(np.arange(len(images)), _PER_IMAGE)):
        raise InputError("CxC and ECCV need five captions of each image, one image after the other")
    captions = [caption for image in images for caption in captions_of[image]]
    return np.array(images, np.int64), np.array(captions, np.int64)


def first(scores: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Return the indexes of the `count` highest scores, best first; the lower index wins a tie."""
    count = min(count, len(scores))
    # `count` groups reach the count-th largest of the groups' maxima, so nothing below it can be in the list. It
    # takes a third of the time that a partition of the row takes.
    maxima = np.maximum.reduceat(scores, np.arange(0, len(scores), max(1, len(scores) // (4 * count))))
    bound = np.partition(maxima, len(maxima) - count)[len(maxima) - count]
    candidates = np.flatnonzero(scores >= bound)
    return candidates[np.argsort(-scores[candidates], kind="stable")[:count]]


def _judge() -> Any:
    with needs("eccv_caption", "scoring with CxC and ECCV"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about ujson and tqdm, which it can do without
        import eccv_caption
    return eccv_caption.Metrics()
