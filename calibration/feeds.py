"""Real samples as inputs of each graph.

Images and captions are batched by length, so that no padding enters the statistics. Within a length, the contents alone
decide the order: the same samples make the same batches in whichever order they come, and therefore the same ranges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from ..runtime.contract import Preprocess, sha256_file
from ..runtime.data.images import spread
from ..runtime.errors import InputError
from ..runtime.pictures.load import load_pixels
from ..runtime.text import TokenBatch

Feeds = Mapping[str, np.ndarray]

MIN_SAMPLES = 16
BATCH = 32
PICTURES = 64  # that the backbone is run on: each costs a hundred times what a caption does
PICTURE_BATCH = 4


@dataclass(frozen=True)
class Samples:
    """Images and captions to calibrate or measure on.

    Attributes:
        regions: function that reads the images in rows (int64 [n]): (regions float32 [n, R, F], lengths int32 [n]).
        num_images: number of images.
        tokens: token ids int32 [C, W] and lengths int32 [C] of the captions.
        pictures: picture files for the backbone; at most 64 of them are read, spread evenly.

    Raises:
        InputError: there are fewer than 16 images or captions.
    """

    regions: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    num_images: int
    tokens: TokenBatch
    pictures: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        for name, count in (("images", self.num_images), ("captions", len(self.tokens.lengths))):
            if count < MIN_SAMPLES:
                raise InputError(f"int8 is calibrated and measured on at least {MIN_SAMPLES} {name}, got {count}")

    def image_feeds(self) -> list[Callable[[], Feeds]]:
        """Return functions that read one batch each for `region_encoder`: images of equal length, shortest first."""
        return [partial(self.images, rows) for rows in self.image_rows()]

    def image_rows(self) -> list[np.ndarray]:
        """Return the rows (int64) of the images in each batch of `image_feeds`."""
        return _batches(self._image_order, self.region_lengths)

    @property
    def region_lengths(self) -> np.ndarray:
        """Return the number of regions of each image, int32 [N]."""
        return self._surveyed[0]

    def images(self, rows: np.ndarray) -> Feeds:
        """Return the inputs of `region_encoder` for the images in `rows`, padded to the longest of them."""
        regions, lengths = self.regions(rows)
        return {"regions": regions, "region_lengths": lengths}

    def caption_feeds(self) -> list[Callable[[], Feeds]]:
        """Return functions that make one batch each for `text_encoder`: captions of equal length, shortest first."""
        return [partial(self.captions, rows) for rows in self.caption_rows()]

    def caption_rows(self) -> list[np.ndarray]:
        """Return the rows (int64) of the captions in each batch of `caption_feeds`."""
        ids = np.where(np.arange(self.tokens.ids.shape[1]) < self.tokens.lengths[:, None], self.tokens.ids, 0)
        return _batches(np.lexsort(ids.T[::-1]), self.tokens.lengths)

    def captions(self, rows: np.ndarray) -> Feeds:
        """Return the inputs of `text_encoder` for the captions in `rows`, padded to the longest of them."""
        lengths = self.tokens.lengths[rows]
        return {"token_ids": np.ascontiguousarray(self.tokens.ids[rows, : lengths.max()]), "token_lengths": lengths}

    def picture_feeds(self, preprocess: Preprocess) -> list[Callable[[], Feeds]]:
        """Return functions that read one batch each for `backbone`."""
        files = self._chosen_pictures
        return [
            partial(_pixels, files[start : start + PICTURE_BATCH], preprocess)
            for start in range(0, len(files), PICTURE_BATCH)
        ]

    @cached_property
    def _chosen_pictures(self) -> list[Path]:
        """In the order of their contents, so that it does not depend on the order of the samples."""
        if not self.pictures:
            return []
        chosen = [self.pictures[row] for row in spread(len(self.pictures), PICTURES)]
        return sorted(chosen, key=sha256_file)

    def sha256(self) -> str:
        """Return the hash of the contents of all samples, in whichever order they are given."""
        digest = hashlib.sha256()
        for row in self._image_order:
            digest.update(self._surveyed[1][row])
        for read in self.caption_feeds():
            for name, value in read().items():
                digest.update(f"{name}{value.dtype}{value.shape}".encode())
                digest.update(np.ascontiguousarray(value).data)
        for file in self._chosen_pictures:
            digest.update(sha256_file(file).encode())
        return digest.hexdigest()

    @cached_property
    def _surveyed(self) -> tuple[np.ndarray, list[bytes]]:
        """The length and the hash of each image."""
        lengths = np.empty(self.num_images, np.int32)
        hashes: list[bytes] = []
        for start in range(0, self.num_images, BATCH):
            rows = np.arange(start, min(start + BATCH, self.num_images))
            regions, lengths[rows] = self.regions(rows)
            for image, length in zip(regions, lengths[rows], strict=True):
                content = np.ascontiguousarray(image[:length])
                hashes.append(hashlib.sha256(f"{content.dtype}{content.shape}".encode() + content.tobytes()).digest())
        return lengths, hashes

    @property
    def _image_order(self) -> np.ndarray:
        """The images in the order of their hashes, so that batches do not depend on the order of the samples."""
        return np.array(sorted(range(self.num_images), key=self._surveyed[1].__getitem__), np.int64)


def _pixels(files: list[Path], preprocess: Preprocess) -> Feeds:
    return {"pixels": load_pixels(files, preprocess)}


def _batches(order: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Divide rows, taken in `order`, into batches of equal length, the shortest first."""
    groups = (order[lengths[order] == length] for length in np.unique(lengths))
    return [rows[start : start + BATCH] for rows in groups for start in range(0, len(rows), BATCH)]
