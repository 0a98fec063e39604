"""Real samples as inputs of each graph.

Captions are batched by length, so that no padding enters the statistics. Regions are padded with zeros past an image's
length, and these zeros are counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..runtime.errors import InputError
from ..runtime.text import TokenBatch

Feeds = Mapping[str, np.ndarray]

MIN_SAMPLES = 16
BATCH = 32
# images and captions whose embeddings feed the alignment graphs: 64 x 64 pairs see every kind of similarity
ALIGNED = 64


@dataclass(frozen=True)
class Samples:
    """Images and captions to calibrate or measure on.

    Attributes:
        regions: function that reads a slice of the images: (regions float32 [n, R, F], lengths int32 [n]).
        num_images: number of images.
        tokens: token ids int32 [C, W] and lengths int32 [C] of the captions.

    Raises:
        InputError: there are fewer than 16 images or captions.
    """

    regions: Callable[[slice], tuple[np.ndarray, np.ndarray]]
    num_images: int
    tokens: TokenBatch

    def __post_init__(self) -> None:
        for name, count in (("images", self.num_images), ("captions", len(self.tokens.lengths))):
            if count < MIN_SAMPLES:
                raise InputError(f"calibration needs at least {MIN_SAMPLES} {name}, got {count}")

    def image_feeds(self) -> list[Callable[[], Feeds]]:
        """Return functions that read one batch each for `region_encoder`, in order."""
        starts = range(0, self.num_images, BATCH)
        return [partial(self._images, slice(start, min(start + BATCH, self.num_images))) for start in starts]

    def caption_feeds(self) -> list[Callable[[], Feeds]]:
        """Return functions that make one batch each for `text_encoder`: captions of equal length, shortest first."""
        return [partial(self.captions, rows) for rows in self.caption_rows()]

    def caption_rows(self) -> list[np.ndarray]:
        """Return the rows (int64) of the captions in each batch of `caption_feeds`."""
        rows_by_length = (np.nonzero(self.tokens.lengths == length)[0] for length in np.unique(self.tokens.lengths))
        return [rows[start : start + BATCH] for rows in rows_by_length for start in range(0, len(rows), BATCH)]

    def captions(self, rows: np.ndarray) -> Feeds:
        """Return the inputs of `text_encoder` for the captions in `rows`, padded to the longest of them."""
        lengths = self.tokens.lengths[rows]
        return {"token_ids": np.ascontiguousarray(self.tokens.ids[rows, : lengths.max()]), "token_lengths": lengths}

    def _images(self, positions: slice) -> Feeds:
        regions, lengths = self.regions(positions)
        return {"regions": regions, "region_lengths": lengths}

    def sha256(self) -> str:
        """Return the hash of the contents of every sample."""
        digest = hashlib.sha256()
        for read in (*self.image_feeds(), *self.caption_feeds()):
            for name, value in read().items():
                digest.update(f"{name}{value.dtype}{value.shape}".encode())
                digest.update(np.ascontiguousarray(value).data)
        return digest.hexdigest()
