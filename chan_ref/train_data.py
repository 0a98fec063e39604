"""What a run trains on and validates on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..runtime.data.images import CaptionedImages
from ..runtime.data.layout import has_split
from ..runtime.errors import InputError

_HELD_OUT = 1000  # images at most that are held out of train where there is no dev


@dataclass(frozen=True)
class TrainData:
    """Pairs to train on and images to validate on.

    Attributes:
        train: the images of train with their captions, those that are held out included.
        pairs: int64 [P], the captions of `train` that are trained on.
        validation: the images of dev, or those held out.
        fingerprint: SHA-256 of what identifies the data.
    """

    train: CaptionedImages
    pairs: NDArray[np.int64]
    validation: CaptionedImages
    fingerprint: str

    @classmethod
    def open(cls, data_dir: str | Path) -> TrainData:
        """Open DATA's train split, and its dev split or else the last tenth of train (at most 1,000 images).

        Raises:
            InputError: a split breaks a rule, or there is no dev split and train is too small to hold images out.
        """
        train = CaptionedImages.open(data_dir, "train")
        kept = train.num_images
        if has_split(data_dir, "dev"):
            validation = CaptionedImages.open(data_dir, "dev")
        else:
            kept -= min(_HELD_OUT, train.num_images // 10)
            if kept == train.num_images:
                raise InputError(f"{data_dir} has no dev split and too few training images to hold some out: add one")
            validation = train.take(np.arange(kept, train.num_images))
        if validation.region_dim != train.region_dim:
            widths = f"{validation.region_dim} and {train.region_dim}"
            raise InputError(f"dev and train must have features of the same width, got {widths}")
        digest = hashlib.sha256("\n".join(train.captions).encode())
        digest.update(f"{train.num_images} {train.max_regions} {train.region_dim} {kept}".encode())
        pairs = np.flatnonzero(train.image_of_caption < kept)
        return cls(train, pairs, validation, digest.hexdigest())

    @property
    def captions(self) -> list[str]:
        """The captions that are trained on [P]."""
        return [self.train.captions[row] for row in self.pairs]
