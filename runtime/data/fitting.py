"""Captions that a text encoder can take: those of more words than it reads are cut at a blank."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from ..errors import InputError
from ..text import Tokenizer
from .images import CaptionedImages

_WORD = re.compile(r"\S+")


def fit_captions(
    images: CaptionedImages, tokenizer: Tokenizer, max_words: int | None, *, strict: bool = False
) -> CaptionedImages:
    """The same images with captions of at most so many words; `cut_rows` of the result names those that were cut.

    Args:
        images: with their captions.
        tokenizer: of the model.
        max_words: the largest number of words (or wordpieces), the marks of start and end included; None for no limit.
        strict: refuse a caption that is too long.

    Raises:
        InputError: a caption without a word, one that cannot be cut, or, where `strict`, one that is too long; by its
            place in its file.
    """
    try:
        texts, cut = cut_texts(images.captions, tokenizer, max_words)
    except InputError:
        for row, caption in zip(images.caption_rows, images.captions, strict=True):
            try:
                cut_texts([caption], tokenizer, max_words)
            except InputError as error:
                raise InputError(f"{_place(images, int(row))}: {error}") from error
        raise
    rows = tuple(int(images.caption_rows[position]) for position in cut)
    if rows and strict:
        words = len(tokenizer.rows([images.captions[cut[0]]])[0])
        raise InputError(
            f"{_place(images, rows[0])} must have at most {max_words} words, start and end included, got {words}"
        )
    return replace(images, captions=texts, cut_rows=rows)


def cut_texts(captions: Sequence[str], tokenizer: Tokenizer, max_words: int | None) -> tuple[list[str], list[int]]:
    """Captions cut to at most so many words, and the positions of those that were cut.

    A caption is cut behind the last blank that leaves it short enough, and within its first word only where that alone
    is too long.

    Raises:
        InputError: a caption without a word, or one that cannot be cut, because its first letter is too long.
    """
    texts = list(captions)
    if max_words is None:
        return texts, []
    # Every word takes at least one character, of those that BERT's tokenizer decomposes letters into.
    doubtful = [
        position for position, text in enumerate(texts) if len(unicodedata.normalize("NFD", text)) + 2 > max_words
    ]
    rows = tokenizer.rows([texts[position] for position in doubtful]) if doubtful else []
    cut = [position for position, row in zip(doubtful, rows, strict=True) if len(row) > max_words]
    for position in cut:
        texts[position] = _cut(texts[position], tokenizer, max_words)
    return texts, cut


def _cut(text: str, tokenizer: Tokenizer, max_words: int) -> str:
    def fits(end: int) -> bool:
        return len(tokenizer.rows([text[:end]])[0]) <= max_words

    ends = [match.end() for match in _WORD.finditer(text)]
    if not fits(ends[0]):
        start = ends[0] - len(_WORD.findall(text)[0])
        ends = list(range(start + 1, ends[0] + 1))
        if not fits(ends[0]):
            words = len(tokenizer.rows([text[: ends[0]]])[0])
            raise InputError(
                f"a caption cannot be cut to {max_words} words, start and end included: its first letter takes {words}"
            )
    low, high = 0, len(ends) - 1  # the first fits; the last may not
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(ends[middle]) else (low, middle - 1)
    return text[: ends[low]]


def _place(images: CaptionedImages, row: int) -> str:
    if images.files is None:
        return f"captions[{row}]"
    return f"{images.files.annotations or images.files.captions}: caption {row + 1}"
