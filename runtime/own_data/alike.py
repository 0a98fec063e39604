"""Pictures of dev and test that look like one of train: a smaller or recompressed copy, which no checksum finds.

Both are scaled to 8 x 8 pixels and compared. 466 pictures of tuxpaint-stamps-default are at least 100 pixels wide and
high. Of their copies at half the size 99 % are found, and 91 % of those at a third of it as JPEG of quality 75. Of the
315,615 pairs of the package's 795 different pictures 3 look alike: letters and toys that differ in a stroke.
Copies that were cut at the edges or mirrored are mostly not found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from .check import Checked

_FARTHEST = 6.0  # root mean square of the differences of two thumbnails, in steps of 0 to 255
_PROPORTION = 0.03  # largest difference of the logarithms of width / height
_BLOCK = 2048  # pictures of each side that are compared at once


def alike(asked: Sequence[Checked], others: Sequence[Checked]) -> Iterator[tuple[int, int]]:
    """The pictures of `asked` that look like one of `others`, each with the most similar: positions in both.

    Args:
        asked: pictures.
        others: those to compare them with.
    """
    for begin in range(0, len(asked), _BLOCK):
        looks, proportions = _arrays(asked[begin : begin + _BLOCK])
        best, nearest = np.full(len(looks), np.inf), np.zeros(len(looks), np.int64)
        for start in range(0, len(others), _BLOCK):
            theirs, their_proportions = _arrays(others[start : start + _BLOCK])
            squares = (looks**2).sum(1)[:, None] + (theirs**2).sum(1) - 2 * looks @ theirs.T
            squares[np.abs(proportions[:, None] - their_proportions) > _PROPORTION] = np.inf
            at = squares.argmin(1)
            least = squares[np.arange(len(looks)), at]
            nearest, best = np.where(least < best, at + start, nearest), np.minimum(least, best)
        for row in np.flatnonzero(best <= _FARTHEST**2 * looks.shape[1]):
            yield begin + int(row), int(nearest[row])


def _arrays(pictures: Sequence[Checked]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Thumbnails [n, 192], whose products are exact in float32, and logarithms of width / height [n]."""
    looks = np.frombuffer(b"".join(picture.look for picture in pictures), np.uint8).reshape(len(pictures), -1)
    return looks.astype(np.float32), np.log([picture.width / picture.height for picture in pictures])
