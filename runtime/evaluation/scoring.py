"""Scores of every image with every caption on the CPU: words packed without padding, one matrix product for each block.

Padding all captions to the longest one wastes most of the work: the longest caption of Flickr30K's test has several
times the words of the mean. Here the words of all captions form one matrix [T, D], where T is the sum of their lengths.
A block of images is multiplied with a block of this matrix, and pooled while the product is in the cache. Everything is
float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..contract import AlignmentConfig
from ..embeddings import Embeddings
from ..errors import TensorError

# Similarities in a block: 16 MiB of float32. At 1024-d and 36 regions the product takes nearly all the time (on a core
# of an EPYC 164 ms at 88 GFLOP/s, and 2 ms for the maxima), so this only bounds memory.
_BLOCK = 1 << 22
_IMAGES = 32
_EPSILON = np.float32(1e-8)  # added to a norm before dividing by it, as published

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class PackedWords:
    """The words of C captions, one after the other.

    Attributes:
        vectors: [T, D] float32.
        starts: int64 [C + 1]; caption c has the rows starts[c]:starts[c + 1].
    """

    vectors: Floats
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        """C."""
        return len(self.starts) - 1

    def captions(self, first: int, last: int) -> PackedWords:
        """Return captions first:last without a copy."""
        starts = self.starts[first : last + 1]
        return PackedWords(self.vectors[starts[0] : starts[-1]], starts - starts[0])

    @staticmethod
    def pack(parts: Iterable[Embeddings]) -> PackedWords:
        """Drop the padding of encoded captions; `parts` may be an iterator, and each part may have another width."""
        rows, lengths = [], []
        for part in parts:
            valid = np.arange(part.vectors.shape[1]) < part.lengths[:, None]
            rows.append(part.vectors[valid])
            lengths.append(part.lengths)
        if not rows:
            raise TensorError("captions", "must hold at least one caption", "none")
        starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths), dtype=np.int64)])
        return PackedWords(np.concatenate(rows), starts)


def score(images: Embeddings, captions: PackedWords, alignment: AlignmentConfig) -> Floats:
    """Compute scores [I, C] as `chan_ref.alignment.score` defines them. Padded regions are ignored.

    Raises:
        TensorError: embeddings of different widths.
    """
    if images.dim != captions.vectors.shape[1]:
        raise TensorError("region_embeddings", f"D must be {captions.vectors.shape[1]}, as the words'", images.dim)
    out = np.empty((len(images), len(captions)), np.float32)
    for first in range(0, len(images), _IMAGES):
        block = images[first : first + _IMAGES].trimmed()
        for begin, end in _caption_blocks(captions.starts, _BLOCK // (len(block) * block.vectors.shape[1])):
            out[first : first + _IMAGES, begin:end] = _block_scores(block, captions.captions(begin, end), alignment)
    return out


def _block_scores(images: Embeddings, captions: PackedWords, alignment: AlignmentConfig) -> Floats:
    """Score a block whose similarities fit in memory: [I, C]."""
    num_images, num_regions, dim = images.vectors.shape
    segments = captions.starts[:-1]
    regions = images.vectors.reshape(-1, dim)
    valid = np.arange(num_regions) < images.lengths[:, None]  # [I, R]
    if alignment.coding == "VHA":
        s = (regions @ captions.vectors.T).reshape(num_images, num_regions, -1)  # [I, R, T]
        if not valid.all():
            s[~valid] = -np.inf
        return _pool_segments(s.max(axis=1), segments, np.diff(captions.starts), alignment)
    s = captions.vectors @ regions.T  # [T, I * R]
    coding = np.maximum.reduceat(s, segments, axis=0) if alignment.coding == "THA" else _attend(s, captions, alignment)
    return _pool_regions(coding.reshape(-1, num_images, num_regions), valid, alignment).T


def _attend(s: Floats, captions: PackedWords, alignment: AlignmentConfig) -> Floats:
    """VSA: `region . v / (||v|| + 1e-8)` [C, I * R] for v the softmax-weighted mean of a caption's words.

    v itself is never formed: `region . v = sum_w a_w s_w` and `||v||^2 = a' G a`, G the caption's words' products.
    """
    coding = np.empty((len(captions), s.shape[1]), np.float32)
    for caption in range(len(captions)):
        words = slice(captions.starts[caption], captions.starts[caption + 1])
        own = s[words]  # [W, I * R]
        weights = np.exp((own - own.max(axis=0)) / np.float32(alignment.attention_temperature))
        weights /= weights.sum(axis=0)
        gram = captions.vectors[words] @ captions.vectors[words].T
        squared = np.einsum("wn,wn->n", weights, gram @ weights)
        norms = np.sqrt(np.maximum(squared, np.float32(0)))
        coding[caption] = np.einsum("wn,wn->n", weights, own) / (norms + _EPSILON)
    return coding


def _pool_segments(
    x: Floats, segments: NDArray[np.int64], lengths: NDArray[np.int64], alignment: AlignmentConfig
) -> Floats:
    """Pool each caption's columns of [I, T] to [I, C]."""
    counts = lengths.astype(np.float32)
    if alignment.pooling in ("Sum", "Mean"):
        total: Floats = np.add.reduceat(x, segments, axis=1)
        return total if alignment.pooling == "Sum" else total / counts
    largest: Floats = np.maximum.reduceat(x, segments, axis=1)
    if alignment.pooling == "Max":
        return largest
    temperature = np.float32(alignment.pooling_temperature)
    powers = np.exp((x - np.repeat(largest, lengths, axis=1)) / temperature)
    total = np.add.reduceat(powers, segments, axis=1)
    if alignment.pooling == "LSE":
        lse: Floats = np.log(total) + largest / temperature
        return lse
    weighted: Floats = np.add.reduceat(powers * x, segments, axis=1)
    return weighted / total


def _pool_regions(x: Floats, valid: NDArray[np.bool_], alignment: AlignmentConfig) -> Floats:
    """Pool the valid regions of [C, I, R] to [C, I]."""
    counts = valid.sum(axis=1, dtype=np.float32)
    if alignment.pooling in ("Sum", "Mean"):
        total: Floats = np.sum(x, axis=2, where=valid)
        return total if alignment.pooling == "Sum" else total / counts
    hidden = np.where(valid, x, np.float32(-np.inf))
    largest: Floats = hidden.max(axis=2)
    if alignment.pooling == "Max":
        return largest
    temperature = np.float32(alignment.pooling_temperature)
    powers: Floats = np.exp((hidden - largest[:, :, None]) / temperature)  # 0 at what is not valid
    total = np.sum(powers, axis=2)
    if alignment.pooling == "LSE":
        lse: Floats = np.log(total) + largest / temperature
        return lse
    mean: Floats = np.sum(powers * x, axis=2, where=valid) / total
    return mean


def _caption_blocks(starts: NDArray[np.int64], most_words: int) -> Iterable[tuple[int, int]]:
    """Yield ranges of consecutive captions that have at most `most_words` words together, or are one caption."""
    first = 0
    while first < len(starts) - 1:
        last = int(np.searchsorted(starts, starts[first] + most_words, side="right")) - 1
        last = max(first + 1, last)
        yield first, last
        first = last
