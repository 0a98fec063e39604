"""How a sample is cut into pieces, so that memory is bounded by a few blocks and one score matrix.

A block is some consecutive images, or the captions of these; embeddings wait on disk between blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ...runtime.data.images import CaptionedImages
from ...runtime.embeddings import Embeddings
from ...runtime.errors import ParityError
from ...runtime.text import TokenBatch

IMAGES_PER_BLOCK = 16
CAPTIONS_PER_BLOCK = 80
TILE = 4  # blocks of images

Tick = Callable[[int, int], None]  # called with blocks done and blocks in all


def image_blocks(sample: CaptionedImages) -> list[slice]:
    """Consecutive images."""
    return _slices(0, sample.num_images, IMAGES_PER_BLOCK)


def captions_of(sample: CaptionedImages, images: slice) -> list[slice]:
    """The captions of a block of images, in pieces."""
    first, last = np.searchsorted(sample.image_of_caption, [images.start, images.stop])
    return _slices(int(first), int(last), CAPTIONS_PER_BLOCK)


def _slices(start: int, stop: int, size: int) -> list[slice]:
    return [slice(at, min(at + size, stop)) for at in range(start, stop, size)]


def caption_blocks(sample: CaptionedImages) -> list[slice]:
    """Every block of captions, in order."""
    return [block for images in image_blocks(sample) for block in captions_of(sample, images)]


def score_tiles(sample: CaptionedImages) -> list[list[slice]]:
    """Blocks of images that are scored together: larger products are faster, and each caption is read less often."""
    blocks = image_blocks(sample)
    return [blocks[start : start + TILE] for start in range(0, len(blocks), TILE)]


def score_all(
    sample: CaptionedImages,
    images: EmbeddingStore,
    captions: EmbeddingStore,
    score: Callable[[Embeddings, Embeddings], np.ndarray],
    after_tile: Callable[[], None],
) -> np.ndarray:
    """Scores [I, C] of stored embeddings, float32."""
    scores = np.empty((sample.num_images, len(sample.captions)), np.float32)
    for tile in score_tiles(sample):
        rows = slice(tile[0].start, tile[-1].stop)
        regions = Embeddings.concatenate([images.get(block) for block in tile])
        for columns in caption_blocks(sample):
            found = score(regions, captions.get(columns))
            expected = (rows.stop - rows.start, columns.stop - columns.start)
            if found.shape != expected:
                raise ParityError(f"scores: shape must be [I, C] = {list(expected)}, got {list(found.shape)}")
            scores[rows, columns] = found
        after_tile()
    return scores


def steps_of(sample: CaptionedImages) -> int:
    """How often one pass over a sample ticks: for each block encoded and each tile scored."""
    return len(image_blocks(sample)) + len(caption_blocks(sample)) + len(score_tiles(sample))


def own_pairs(sample: CaptionedImages) -> Iterator[tuple[slice, slice]]:
    """Blocks of images with the captions of just these images: true pairs and as many others as the blocks give."""
    for rows in image_blocks(sample):
        for columns in captions_of(sample, rows):
            yield rows, columns


class EmbeddingStore:
    """Blocks of embeddings in files of a folder, by the block's first row."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder

    def put(self, block: slice, embedded: Embeddings) -> None:
        """Keep a block."""
        np.savez(self._folder / f"{block.start}.npz", vectors=embedded.vectors, lengths=embedded.lengths)

    def get(self, block: slice) -> Embeddings:
        """A block that was put."""
        with np.load(self._folder / f"{block.start}.npz") as stored:
            return Embeddings(stored["vectors"], stored["lengths"])


def token_block(tokens: TokenBatch, block: slice) -> tuple[np.ndarray, np.ndarray]:
    """Ids and lengths of some captions, padded to the longest of them."""
    lengths = tokens.lengths[block]
    return np.ascontiguousarray(tokens.ids[block, : int(lengths.max())]), lengths


def cut_short(lengths: np.ndarray) -> np.ndarray:
    """Lengths drawn from 1 to each of `lengths`, always the same: real rows past them become padding."""
    return np.random.default_rng(0).integers(1, lengths + 1).astype(np.int32)
