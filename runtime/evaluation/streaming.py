"""The scores of a whole split, computed block by block: each image and caption is encoded once.

Memory holds the words of all captions without padding (float32 [T, D]), the scores [I, C], and one block of images.
Flickr30K's test has 5,000 captions of 14 words, which is 290 MB at 1024-d, and COCO's 5K test five times that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..contract import AlignmentConfig
from ..data.images import CaptionedImages
from ..embeddings import Embeddings
from .scoring import PackedWords
from .scoring import score as score_packed

IMAGES = 128  # encoded and scored at once
_CAPTIONS = 512  # encoded at once, of similar length

OnProgress = Callable[[int, int], None]
"""Called after each block with the work done and all work, in pairs of image and caption (encoding counts as none)."""


class Encoder(Protocol):
    """What is evaluated: a `Matcher`, or a checkpoint in PyTorch behind the same methods."""

    @property
    def alignment(self) -> AlignmentConfig:
        """How similarities become scores."""

    def encode_images(self, regions: NDArray[np.float32], lengths: NDArray[np.int32]) -> Embeddings:
        """Encode region features [B, R, F] with lengths [B]."""

    def encode_texts(self, captions: Sequence[str]) -> Embeddings:
        """Encode B captions."""

    def score(self, images: Embeddings, texts: Embeddings) -> NDArray[np.float32]:
        """Score every image with every caption: [I, C]."""


def score_blocks(
    encoder: Encoder,
    images: CaptionedImages,
    blocks: Sequence[tuple[slice, slice]],
    *,
    packed: bool,
    on_progress: OnProgress | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Yield the scores of each block of (image rows, caption columns), one matrix after the other.

    One block of everything gives the whole matrix; the folds of `metrics.fold_slices` give only their own parts of it.
    An image and a caption are encoded once for each block they are in.

    Args:
        encoder: what is evaluated.
        images: with their captions.
        blocks: slices with start and stop.
        packed: score with the packed float32 scorer of this package rather than by `encoder.score`.
        on_progress: called after each piece of work.

    Raises:
        ChanError: as the encoder and `images` raise it. Captions must be such that the encoder takes them: see
            `data.fitting.fit_captions`.
    """
    total = sum((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in blocks)
    done = 0
    for rows, columns in blocks:
        encoded = [
            (places, PackedWords.pack([texts]) if packed else texts)
            for places, texts in encode_captions(encoder, images.captions[columns])
        ]
        scores = np.empty((rows.stop - rows.start, columns.stop - columns.start), np.float32)
        for first in range(rows.start, rows.stop, IMAGES):
            part = slice(first, min(first + IMAGES, rows.stop))
            here = encoder.encode_images(*images.regions(part))
            out = scores[part.start - rows.start : part.stop - rows.start]
            for places, texts in encoded:
                if isinstance(texts, PackedWords):
                    out[:, places] = score_packed(here, texts, encoder.alignment)
                else:
                    out[:, places] = encoder.score(here, texts)
                done += len(here) * len(places)
                if on_progress is not None:
                    on_progress(done, total)
        yield scores


def common_scale(scores: NDArray[np.float32], alignment: AlignmentConfig) -> NDArray[np.float32]:
    """Bring scores to a scale that all poolings share: log-sum-exp is multiplied by its temperature t.

    `t log sum exp(x / t)` lies between the largest x and that plus `t log W`. As published it is 1 / t times as large,
    and would decide alone in an ensemble. The ranks do not change. Sum pooling is left as it is: a sum of similarities.
    """
    if alignment.pooling == "LSE":
        return scores * np.float32(alignment.pooling_temperature)
    return scores


def encode_captions(encoder: Encoder, captions: Sequence[str]) -> Iterator[tuple[NDArray[np.intp], Embeddings]]:
    """Yield the places of some captions and their encoded words, captions of similar length together.

    Tokenizers differ, but sorting by the number of blanks avoids most padding.
    """
    order = np.argsort([caption.count(" ") for caption in captions], kind="stable")
    for first in range(0, len(order), _CAPTIONS):
        places = order[first : first + _CAPTIONS]
        yield places, encoder.encode_texts([captions[place] for place in places])
