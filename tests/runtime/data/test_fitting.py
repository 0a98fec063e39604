"""Captions cut to what a text encoder takes: at a blank, no more than needed, and counted by their place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chan_rt.runtime.data.fitting import cut_texts, fit_captions
from chan_rt.runtime.data.images import CaptionedImages
from chan_rt.runtime.errors import InputError
from chan_rt.runtime.text import BertTokenizer, ScanTokenizer, bert_tokenizer_json, build_scan_vocabulary

SCAN = ScanTokenizer(build_scan_vocabulary(["a dog runs"], 1)["word2idx"])
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh.", *(f"##{letter}" for letter in "abcdefgh")]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizer:
    pytest.importorskip("tokenizers", reason="the extra bert is not installed")
    file = tmp_path_factory.mktemp("bert") / "vocab.txt"
    file.write_text("\n".join(PIECES) + "\n")
    return BertTokenizer(bert_tokenizer_json(file))


WORDS = st.text(alphabet="abcde.,'\" ", min_size=1, max_size=60).filter(lambda text: text.strip() != "")


@settings(deadline=None, max_examples=200)
@given(WORDS, st.integers(4, 20))
def test_a_cut_caption_fits_and_one_word_more_does_not(text: str, limit: int) -> None:
    (found,), cut = cut_texts([text], SCAN, limit)
    words = len(SCAN.rows([text])[0])
    assert bool(cut) == (words > limit)
    if not cut:
        assert found == text
        return
    assert text.startswith(found)
    assert len(SCAN.rows([found])[0]) <= limit
    rest = text[len(found) :].lstrip()
    if " " in found.strip():  # not within the first word
        longer = text[: len(text) - len(rest)] + rest.split(" ")[0]
        assert len(SCAN.rows([longer])[0]) > limit


def test_a_first_word_that_is_too_long_is_cut_within(bert: BertTokenizer) -> None:
    texts, cut = cut_texts(["  abcdefgh abc", "ab cd"], bert, 7)
    assert texts == ["  abcde", "ab cd"]
    assert cut == [0]
    assert len(bert.rows(texts)[0]) == 7


@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("caption", ["a", "dog runs", "dog"])
def test_a_caption_that_cannot_be_cut_is_an_error(caption: str, limit: int) -> None:
    wanted = f"cannot be cut to {limit} words, start and end included: its first letter takes 3"
    with pytest.raises(InputError, match=wanted):
        cut_texts([caption], SCAN, limit)


def test_a_letter_of_many_wordpieces_cannot_be_cut(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="the extra bert is not installed")
    parts = ["\u1112", "##\u1161", "##\u11ab"]  # what BERT makes of U+D55C
    (tmp_path / "vocab.txt").write_text("\n".join([*PIECES, *parts]) + "\n")
    bert = BertTokenizer(bert_tokenizer_json(tmp_path / "vocab.txt"))
    with pytest.raises(InputError, match="cannot be cut to 4 words, start and end included: its first letter takes 5"):
        cut_texts(["\ud55c"], bert, 4)


def test_letters_that_decompose_count_as_their_parts(bert: BertTokenizer) -> None:
    """Stripped accents shorten, but Hangul falls into two or three letters: 'short' is said of the decomposed text."""
    texts, cut = cut_texts(["\u00e1b\u00e7d", "\ud55c \ud55c \ud55c \ud55c \ud55c"], bert, 6)
    assert texts[0] == "\u00e1b\u00e7d"
    assert cut == [1]
    assert len(bert.rows(texts)[1]) <= 6


def long_captions(tmp_path: Path) -> CaptionedImages:
    captions = [f"caption {line}" for line in range(10)]
    captions[7] = " ".join(["dog"] * 200)
    captions[2] = ""
    (tmp_path / "test_caps.txt").write_text("\n".join(captions) + "\n")
    np.save(tmp_path / "test_ims.npy", np.ones((2, 1, 4), np.float32))
    return CaptionedImages.open(tmp_path, "test")


def test_rows_that_were_cut_are_those_of_the_file(tmp_path: Path) -> None:
    images = long_captions(tmp_path)
    fitted = fit_captions(images, SCAN, 128)
    assert fitted.cut_rows == (7,)
    assert fitted.captions[6] == " ".join(["dog"] * 126)
    assert fitted.captions[:6] == images.captions[:6]
    assert fit_captions(images, SCAN, None).captions == images.captions
    with pytest.raises(InputError, match=r"test_caps\.txt: caption 8 must have at most 128 words, .* got 202"):
        fit_captions(images, SCAN, 128, strict=True)


def test_a_caption_without_a_word_is_named_by_its_place(tmp_path: Path, bert: BertTokenizer) -> None:
    """What a tokenizer drops and `is_blank` does not know: BERT's drops the replacement character."""
    (tmp_path / "test_caps.txt").write_text("ab\n" + "\ufffd" * 9 + "\n")
    np.save(tmp_path / "test_ims.npy", np.random.default_rng(0).random((2, 1, 4), np.float32))
    images = CaptionedImages.open(tmp_path, "test")
    with pytest.raises(InputError, match=r"test_caps\.txt: caption 2: captions\[0\] must hold at least one word"):
        fit_captions(images, bert, 4)
