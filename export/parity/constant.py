"""Region features that are the same everywhere: a sample of them cannot show how a bundle ranks or chooses."""

from __future__ import annotations

import numpy as np

from ...runtime.counts import counted


class Constant:
    """Looks for region features that do not differ, block by block.

    With equal images every ranking of images is a tie, and with equal regions every choice of a region is one. A tie
    falls as rounding wants, so what parity measures of them says nothing about the bundle.
    """

    def __init__(self) -> None:
        self._images = 0
        self._first: np.ndarray | None = None
        self._zero = self._same_images = self._same_regions = True
        self._several = False  # regions in an image

    def add(self, regions: np.ndarray, lengths: np.ndarray) -> None:
        """Look at some images: features [B, R, F] and their numbers of regions [B]."""
        for features, length in zip(regions, lengths, strict=True):
            held = features[:length]
            self._first = held.copy() if self._first is None else self._first
            self._images += 1
            self._zero = self._zero and not held.any()
            self._same_images = self._same_images and np.array_equal(held, self._first)
            self._same_regions = self._same_regions and bool((held == held[:1]).all())
            self._several = self._several or int(length) > 1

    def note(self) -> str:
        """What these features cannot show, why, and what to do; empty where they differ."""
        images = counted(self._images, "image")
        ranks, choices = self._same_images and self._images > 1, self._same_regions and self._several
        if not ranks and not choices:
            return ""
        what = " and ".join(["how images rank"] * ranks + ["which region a word chooses"] * choices)
        if self._zero:
            why = f"all region features of {images} are zero"
        elif ranks and choices:
            why = f"all regions of {images} have the same features"
        elif ranks:
            why = f"{images} have the same region features"
        else:
            why = f"in each of {images} all regions have the same features"
        return f"{what}, because {why}. Compare on features of real pictures: chan features makes them"
