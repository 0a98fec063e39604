"""Captions to token ids: the word vocabulary of SCAN and VSE-infinity, and BERT's wordpieces.

Both tokenizers are immutable once made and may be used from several threads.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .checks import as_list
from .contract import TokenizerSpec, verified
from .counts import counted
from .errors import BundleError, InputError, reason_of
from .extras import needs
from .nltk_words import split_words
from .strict_json import unique_keys

SCAN_SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")
SCAN_MASK = "<mask>"
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_SPECIALS = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")  # in the same order


@dataclass(frozen=True)
class TokenBatch:
    """Ids [C, W] int32, padded with 0 past each caption's length, and lengths [C] int32."""

    ids: NDArray[np.int32]
    lengths: NDArray[np.int32]


class Tokenizer(Protocol):
    """What a Matcher needs of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Rows the text encoder's embedding must have: ids are below it."""

    @property
    def mask_id(self) -> int:
        """Id that stands for a hidden token in training."""

    def rows(self, captions: Sequence[str]) -> list[list[int]]:
        """Ids of each caption, the marks of its start and end included."""

    def encode(self, captions: Sequence[str]) -> TokenBatch:
        """`rows` padded to the longest caption."""

    def tokens(self, caption: str) -> list[str]:
        """The words or wordpieces behind `rows([caption])[0]`, one each."""

    def known(self, caption: str) -> list[bool]:
        """For each of `tokens(caption)`, whether the vocabulary has it; all others share one id."""


class ScanTokenizer:
    """Words of nltk's `word_tokenize(caption.lower())`, looked up in a vocabulary: `<start> words... <end>`.

    Args:
        word2idx: word -> id; `<pad> <start> <end> <unk>` are 0..3 and ids are 0..len - 1. `<mask>` is appended
            here, so the embedding has one row more than the vocabulary file has words.

    Raises:
        BundleError: the vocabulary breaks one of these rules.
    """

    def __init__(self, word2idx: Mapping[str, int]) -> None:
        for expected, word in enumerate(SCAN_SPECIALS):
            if word2idx.get(word) != expected:
                raise BundleError(f"vocabulary: {word} must have id {expected}, got {word2idx.get(word)}")
        if SCAN_MASK in word2idx:
            raise BundleError(f"vocabulary: {SCAN_MASK} is appended at load and must not be in the file")
        if sorted(word2idx.values()) != list(range(len(word2idx))):
            raise BundleError(
                f"vocabulary: {counted(len(word2idx), 'word')} must have the ids 0..{len(word2idx) - 1}, each once"
            )
        self._ids = {**word2idx, SCAN_MASK: len(word2idx)}

    @classmethod
    def from_file(cls, path: str | Path) -> ScanTokenizer:
        """Read a vocabulary JSON `{word2idx, idx2word, idx}`; BundleError names what does not fit."""
        return cls(read_vocabulary(path))

    @property
    def vocab_size(self) -> int:
        """Words of the file, and `<mask>`."""
        return len(self._ids)

    @property
    def mask_id(self) -> int:
        """Id of `<mask>`: the last."""
        return self._ids[SCAN_MASK]

    def rows(self, captions: Sequence[str]) -> list[list[int]]:
        """Ids of each caption; a word outside the vocabulary is `<unk>`. InputError for a caption without words."""
        unknown = self._ids["<unk>"]
        return [[1, *(self._ids.get(word, unknown) for word in words), 2] for words in _all_words(captions)]

    def encode(self, captions: Sequence[str]) -> TokenBatch:
        """Ids [C, W] and lengths [C] of captions, padded to the longest. InputError for a caption without words."""
        return pad_rows(self.rows(captions))

    def tokens(self, caption: str) -> list[str]:
        """`<start>`, the caption's words as they were split (also unknown ones), `<end>`."""
        (words,) = _all_words([caption])
        return ["<start>", *words, "<end>"]

    def known(self, caption: str) -> list[bool]:
        """For each of `tokens(caption)`, whether the vocabulary has it."""
        (words,) = _all_words([caption])
        return [True, *(word in self._ids for word in words), True]


class BertTokenizer:
    """BERT's tokenizer, or RoBERTa's, through the `tokenizers` library: `[CLS] pieces... [SEP]`, `<s> pieces... </s>`.

    A special token that a caption spells out is text like any other: `[SEP]` is split into `[`, `sep` and `]`, as the
    published code splits it.

    Args:
        tokenizer_json: text of a `tokenizer.json`; truncation and padding it asks for are switched off.

    Raises:
        BundleError: it cannot be read, or `[PAD]` is not 0, or one of the special tokens is missing, or it does not add
            those of the start and the end.
        BackendError: `tokenizers` is not installed.
    """

    def __init__(self, tokenizer_json: str) -> None:
        tokenizers = _tokenizers()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the library raises plain Exception
            raise BundleError(f"tokenizer.json cannot be read: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        roberta = self._tokenizer.token_to_id("[CLS]") is None and self._tokenizer.token_to_id("<s>") is not None
        specials = ROBERTA_SPECIALS if roberta else BERT_SPECIALS
        missing = [token for token in specials if self._tokenizer.token_to_id(token) is None]
        if missing:
            raise BundleError(f"tokenizer.json: {', '.join(missing)} must be in the vocabulary")
        if not roberta and self._tokenizer.token_to_id("[PAD]") != 0:
            raise BundleError(f"tokenizer.json: [PAD] must have id 0, got {self._tokenizer.token_to_id('[PAD]')}")
        self._tokenizer.encode_special_tokens = True
        self._bytes = roberta
        _, self._unknown, start, end, self._mask = specials
        pieces = self._tokenizer.encode("a").tokens
        if len(pieces) < 3 or (pieces[0], pieces[-1]) != (start, end):
            shown = " ".join(pieces)
            raise BundleError(
                f"tokenizer.json: its post-processor must add {start} and {end} to a caption, got {shown!r}"
            )

    @classmethod
    def from_file(cls, path: str | Path) -> BertTokenizer:
        """Read a `tokenizer.json`; BundleError where it cannot be read, or is not understood."""
        try:
            return cls(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{path} cannot be read: {reason_of(error)}") from error

    @property
    def vocab_size(self) -> int:
        """Largest id + 1."""
        return 1 + int(max(self._tokenizer.get_vocab(with_added_tokens=True).values()))

    @property
    def mask_id(self) -> int:
        """Id of `[MASK]`, or `<mask>`."""
        return int(self._tokenizer.token_to_id(self._mask))

    def rows(self, captions: Sequence[str]) -> list[list[int]]:
        """Wordpiece ids of each caption. InputError for a caption without wordpieces."""
        return [encoding.ids for encoding in self._encodings(captions)]

    def encode(self, captions: Sequence[str]) -> TokenBatch:
        """Ids [C, W] and lengths [C] of captions, padded to the longest. InputError as in `rows`."""
        return pad_rows(self.rows(captions))

    def tokens(self, caption: str) -> list[str]:
        """`[CLS]`, the caption's wordpieces, `[SEP]`; of RoBERTa's pieces, which are of bytes, the letters."""
        (encoding,) = self._encodings([caption])
        if not self._bytes:
            return list(encoding.tokens)
        pieces = zip(encoding.tokens, encoding.offsets, strict=True)
        return [caption[start:end].strip() or token for token, (start, end) in pieces]

    def known(self, caption: str) -> list[bool]:
        """For each of `tokens(caption)`, whether it is a wordpiece of the vocabulary, and not `[UNK]`."""
        unknown = self._tokenizer.token_to_id(self._unknown)
        return [id != unknown for id in self._encodings([caption])[0].ids]

    def _encodings(self, captions: Sequence[str]) -> list[Any]:
        checked = checked_captions(captions)
        encodings: list[Any] = self._tokenizer.encode_batch(checked)
        for row, encoding in enumerate(encodings):
            if len(encoding.ids) <= 2:
                raise InputError(_no_words(row, checked[row]))
        return encodings


def bert_tokenizer_json(
    vocab_txt: str | Path, lowercase: bool = True, strip_accents: bool | None = None, split_chinese: bool = True
) -> str:
    """Make a `tokenizer.json` from BERT's `vocab.txt` (one wordpiece per line).

    The defaults are the settings of bert-base-uncased. Control characters are always removed, and words of more than
    100 characters are unknown.

    Args:
        vocab_txt: the file of wordpieces.
        lowercase: make captions lower case, as for an uncased model.
        strip_accents: remove accents; None does so exactly for lower case.
        split_chinese: make a word of every Chinese character.

    Raises:
        BundleError: the file cannot be read, or `BertTokenizer` would refuse it.
        BackendError: `tokenizers` is not installed.
    """
    tokenizers = _tokenizers()
    try:
        pieces = Path(vocab_txt).read_text(encoding="utf-8-sig").split("\n")  # see `read_vocabulary`
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{vocab_txt} cannot be read: {reason_of(error)}") from error
    vocabulary = {piece.rstrip("\r"): row for row, piece in enumerate(pieces) if piece.rstrip("\r")}
    missing = [token for token in BERT_SPECIALS if token not in vocabulary]
    if missing:
        raise BundleError(f"{vocab_txt}: {', '.join(missing)} must be in the vocabulary")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)
    )
    tokenizer.add_special_tokens(list(BERT_SPECIALS))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=split_chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    tokenizer.decoder = tokenizers.decoders.WordPiece(prefix="##")
    text: str = tokenizer.to_str(pretty=False)
    BertTokenizer(text)
    return text


def build_scan_vocabulary(captions: Iterable[str], min_count: int) -> dict[str, Any]:
    """A vocabulary `{word2idx, idx2word, idx}` of the words that occur at least `min_count` times in captions.

    Words are in the order of their first occurrence, as SCAN's and VSE-infinity's own script leaves them.
    """
    return extend_scan_vocabulary({word: row for row, word in enumerate(SCAN_SPECIALS)}, captions, min_count)


def extend_scan_vocabulary(word2idx: Mapping[str, int], captions: Iterable[str], min_count: int) -> dict[str, Any]:
    """The vocabulary of `word2idx` and of the words it lacks that occur at least `min_count` times in captions.

    Words keep their ids; new ones follow in the order of their first occurrence.
    """
    if min_count < 1:
        raise InputError(f"min_count must be positive, got {min_count}")
    counts = Counter(word for caption in captions for word in split_words(caption))
    added = [word for word, count in counts.items() if count >= min_count and word not in word2idx]
    return scan_vocabulary({**word2idx, **{word: len(word2idx) + row for row, word in enumerate(added)}})


def scan_vocabulary(word2idx: Mapping[str, int]) -> dict[str, Any]:
    """The vocabulary file's content `{word2idx, idx2word, idx}` for a table word -> id, checked."""
    ScanTokenizer(word2idx)
    in_order = sorted(word2idx, key=lambda word: word2idx[word])
    return {
        "word2idx": dict(word2idx),
        "idx2word": {str(row): word for row, word in enumerate(in_order)},
        "idx": len(in_order),
    }


def read_vocabulary(path: str | Path) -> dict[str, int]:
    """The table word -> id of a vocabulary file `{word2idx, idx2word, idx}`; BundleError names what does not fit."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # editors of Windows begin it with a mark
        raw = json.loads(text, object_pairs_hook=unique_keys)
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {reason_of(error)}") from error
    if not isinstance(raw, dict) or not {"word2idx", "idx2word", "idx"} <= raw.keys():
        raise BundleError(f"{path} must be a vocabulary {{word2idx, idx2word, idx}}")
    word2idx, idx2word = raw["word2idx"], raw["idx2word"]
    if not isinstance(word2idx, dict) or not all(type(index) is int for index in word2idx.values()):
        raise BundleError(f"{path}: word2idx must map words to integers")
    if not isinstance(idx2word, dict) or {word: str(index) for word, index in word2idx.items()} != {
        word: index for index, word in idx2word.items()
    }:
        raise BundleError(f"{path}: idx2word must be the inverse of word2idx")
    if raw["idx"] != len(word2idx):
        raise BundleError(f"{path}: idx must be the number of words {len(word2idx)}, got {raw['idx']}")
    return word2idx


def load_tokenizer(bundle: str | Path, spec: TokenizerSpec) -> ScanTokenizer | BertTokenizer:
    """The bundle's tokenizer, once its files are those of the manifest; BundleError otherwise."""
    names = {"scan": "vocab.json", "bert": "tokenizer.json"}
    if spec.kind not in names:
        raise BundleError(f"tokenizer kind must be one of {', '.join(names)}, got {spec.kind!r}")
    files = [file for file in spec.files if Path(file).name == names[spec.kind]]
    if len(files) != 1:
        raise BundleError(f"a {spec.kind} tokenizer needs one {names[spec.kind]}, the manifest has {list(spec.files)}")
    path = verified(bundle, files[0], spec.files[files[0]])
    return ScanTokenizer.from_file(path) if spec.kind == "scan" else BertTokenizer.from_file(path)


def pad_rows(rows: Sequence[Sequence[int]]) -> TokenBatch:
    """Rows of ids, padded with 0 to the longest."""
    lengths = np.array([len(row) for row in rows], np.int32)
    ids = np.zeros((len(rows), int(lengths.max(initial=0))), np.int32)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = row
    return TokenBatch(ids, lengths)


def _all_words(captions: Sequence[str]) -> Iterable[list[str]]:
    for row, caption in enumerate(checked_captions(captions)):
        words = split_words(caption)
        if not words:
            raise InputError(_no_words(row, caption))
        yield words


def checked_captions(captions: Iterable[str]) -> list[str]:
    """The captions in their order; InputError where there is none, or they are no strings or have no order."""
    if isinstance(captions, str):
        raise InputError(f"captions must be a list of strings, got one string: write [{captions[:40]!r}]")
    checked = as_list("captions", captions)
    if not checked:
        raise InputError("captions must hold at least one caption, got an empty list")
    for row, caption in enumerate(checked):
        if not isinstance(caption, str):
            raise InputError(f"captions[{row}] must be a string, got {type(caption).__name__}")
        try:
            caption.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"captions[{row}] must be valid Unicode, got a lone surrogate: {error}") from error
    return checked


def _no_words(row: int, caption: str) -> str:
    shown = caption if len(caption) <= 40 else caption[:40] + "..."
    return f"captions[{row}] must hold at least one word, got {shown!r}"


def _tokenizers() -> Any:
    with needs("tokenizers", "reading captions for BERT"):
        import tokenizers
    return tokenizers
