"""Which region each word chose, and how much of the score comes from the word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import AlignmentConfig
from .regions import Box, region_box

MARKS = frozenset({"<start>", "<end>", "[CLS]", "[SEP]", "<s>", "</s>"})


@dataclass(frozen=True)
class WordMatch:
    """One word of an explained caption.

    Attributes:
        word: the word or wordpiece; the marks of start and end (`MARKS`) count as words, as in the model.
        region: index of the region most similar to the word; ties go to the lower index.
        similarity: of the word and the region.
        share: the word's part of the score, see `shares`.
        known: whether the model's vocabulary has the word; all unknown words are one and the same to the model.
    """

    word: str
    region: int
    similarity: float
    share: float
    known: bool = True

    @property
    def is_mark(self) -> bool:
        """Whether the tokenizer added it; it is not part of the caption."""
        return self.word in MARKS


@dataclass(frozen=True)
class Explanation:
    """Why an image and a caption have their score.

    Attributes:
        score: as `Matcher.score` returns it.
        words: in the caption's order.
        grid: the regions are a grid x grid raster of the picture, row by row; None where they are not (those of a
            detector).
        boxes: of the regions: left, top, width and height as fractions of the picture; None for those of a grid, and
            where it is not known.
    """

    score: float
    words: tuple[WordMatch, ...]
    grid: int | None
    boxes: tuple[Box, ...] | None = None

    def box(self, match: WordMatch) -> Box | None:
        """Where the region of a word is; None where that is not known."""
        return region_box(match.region, self.grid, self.boxes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON: each word has the `box` of its region."""
        words = [{**asdict(match), "box": self.box(match)} for match in self.words]
        return {"score": self.score, "words": words, "grid": self.grid}


def shares(
    regions: NDArray[np.float32], words: NDArray[np.float32], best: Sequence[float], config: AlignmentConfig
) -> NDArray[np.float64]:
    """Each word's share [W] of the score of one image and one caption.

    The pooling is over entries x of the coding. An entry's share is

    | pooling | share of x_i |
    |---|---|
    | LSE | `exp(x_i / t) / sum_j exp(x_j / t)`, t the pooling temperature: how much the score moves when x_i does |
    | Max | 1 for the largest (the first of equals), 0 for the others |
    | Sum, Mean | `x_i / sum_j abs(x_j)`: negative where the entry pulls the score down |
    | Softmax | the same of the terms `p_i x_i`, p the softmax at the pooling temperature |

    With VHA the entries are the words. With THA and VSA they are the regions, so a region's share goes to its best
    word (THA) or to the words by their attention (VSA). Absolute shares sum to 1 where nothing cancels,
    to less elsewhere.

    Args:
        regions: [R, D] of one image, without padding.
        words: [W, D] of one caption, without padding.
        best: each word's largest similarity [W].
        config: of the model.
    """
    of_words = word_shares(best, config)
    if of_words is not None:
        return of_words
    similarity = regions.astype(np.float64) @ words.astype(np.float64).T  # [R, W]
    if config.coding == "THA":
        weights = np.eye(len(words))[similarity.argmax(axis=1)]  # [R, W]
        coding = similarity.max(axis=1)
    else:
        weights = _softmax(similarity / config.attention_temperature)
        attended = weights @ words.astype(np.float64)  # [R, D]
        coding = (weights * similarity).sum(axis=1) / (np.linalg.norm(attended, axis=1) + 1e-8)
    by_word: NDArray[np.float64] = _entry_shares(coding, config) @ weights
    return by_word


def word_shares(best: Sequence[float] | NDArray[np.float32], config: AlignmentConfig) -> NDArray[np.float64] | None:
    """Each word's share [W] as in `shares`, from the words' largest similarities alone.

    Returns:
        None for THA and VSA, whose entries are regions: their shares need the vectors.
    """
    return _entry_shares(np.asarray(best, np.float64), config) if config.coding == "VHA" else None


def _entry_shares(x: NDArray[np.float64], config: AlignmentConfig) -> NDArray[np.float64]:
    if config.pooling == "Max":
        largest: NDArray[np.float64] = (np.arange(len(x)) == x.argmax()).astype(np.float64)
        return largest
    if config.pooling == "LSE":
        return _softmax(x / config.pooling_temperature)
    terms = x * _softmax(x / config.pooling_temperature) if config.pooling == "Softmax" else x
    total = float(np.abs(terms).sum())
    return terms / total if total > 0 else np.zeros_like(terms)


def _softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    weights: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return weights
