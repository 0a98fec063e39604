"""What a data folder will hold, in figures: counts, lengths, words, and what the splits share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..nltk_words import split_words
from ..skipped import SkippedItem
from .gather import Gathered, OwnPicture
from .splits import SPLITS


@dataclass(frozen=True)
class Range:
    """The smallest, the median and the largest of some numbers."""

    least: int
    median: float
    most: int

    @classmethod
    def of(cls, numbers: Sequence[int]) -> Range:
        """The range of at least one number."""
        return cls(min(numbers), float(np.median(numbers)), max(numbers))


@dataclass(frozen=True)
class SplitReport:
    """One split in figures.

    Attributes:
        pictures, captions: how many there are.
        captions_of_picture: of each picture.
        words_of_caption: of each caption, as the GRU's tokenizer counts them.
        shared_captions: how many captions are also those of another picture of the split, so that no search can tell
            which of the two is meant.
        words: how many occurrences of words there are.
        unknown_words: how many of them the training vocabulary lacks.
        unknown_captions: how many captions have no known word at all.
        in_train: how many captions are also captions of training pictures; 0 for train.
    """

    pictures: int
    captions: int
    captions_of_picture: Range
    words_of_caption: Range
    shared_captions: int
    words: int
    unknown_words: int
    unknown_captions: int
    in_train: int


@dataclass(frozen=True)
class DataReport:
    """A data folder in figures.

    Attributes:
        splits: by name, those that are not empty.
        split_by: how the splits came about.
        min_count: how often a word must occur in train to be known.
        vocabulary: how many words are known.
        train_words: how many different words train has.
        examples: the most frequent words that are unknown in the other splits, at most ten.
        left_out: everything that was left out or joined, by kind.
        alike: pictures of dev and test that look like one of train, such as a smaller copy. They are not left out.
    """

    splits: dict[str, SplitReport]
    split_by: str
    min_count: int
    vocabulary: int
    train_words: int
    examples: list[str]
    left_out: dict[str, list[SkippedItem]]
    alike: list[SkippedItem]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data."""
        return asdict(self)


def report(gathered: Gathered, min_count: int) -> DataReport:
    """Count what was gathered.

    Args:
        gathered: pictures of at least one split.
        min_count: how often a word must occur in train to enter the vocabulary, as in `chan train`.
    """
    train = gathered.of("train")
    texts = {split: [split_words(text) for text in _captions(gathered.of(split))] for split in SPLITS}
    counts = Counter(word for words in texts["train"] for word in words)
    known = {word for word, count in counts.items() if count >= min_count}
    trained = {_plain(text) for text in _captions(train)}
    unknown: Counter[str] = Counter()
    splits = {}
    for split in SPLITS:
        pictures = gathered.of(split)
        if not pictures:
            continue
        captions = Counter(_plain(text) for text in _captions(pictures))
        owners = Counter(text for picture in pictures for text in {_plain(text) for text in picture.captions})
        if split != "train":
            unknown.update(word for words in texts[split] for word in words if word not in known)
        splits[split] = SplitReport(
            pictures=len(pictures),
            captions=sum(captions.values()),
            captions_of_picture=Range.of([len(picture.captions) for picture in pictures]),
            words_of_caption=Range.of([len(words) for words in texts[split]]),
            shared_captions=sum(count for text, count in captions.items() if owners[text] > 1),
            words=sum(map(len, texts[split])),
            unknown_words=sum(word not in known for words in texts[split] for word in words),
            unknown_captions=sum(not known.intersection(words) for words in texts[split]),
            in_train=0 if split == "train" else sum(count for text, count in captions.items() if text in trained),
        )
    return DataReport(
        splits=splits,
        split_by=gathered.split_by,
        min_count=min_count,
        vocabulary=len(known),
        train_words=len(counts),
        examples=[word for word, _ in unknown.most_common(10)],
        left_out=gathered.notes,
        alike=gathered.alike,
    )


def _captions(pictures: Sequence[OwnPicture]) -> list[str]:
    return [caption for picture in pictures for caption in picture.captions]


def _plain(caption: str) -> str:
    """A caption in which capital letters and a full stop at the end make no difference."""
    return caption.lower().rstrip(" .!")
