"""Run a checkpoint in PyTorch with the methods of `runtime.matcher.Matcher`: NumPy in, NumPy out, on the CPU."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..runtime.contract import AlignmentConfig
from ..runtime.embeddings import Embeddings
from ..runtime.errors import BundleError, CheckpointError, reason_of
from ..runtime.text import BertTokenizer, ScanTokenizer
from . import checkpoint
from .model import ChanModel


class ReferenceMatcher:
    """Encodes and scores with the PyTorch model of a checkpoint, without a bundle.

    Attributes:
        model: the model, in evaluation mode.
        alignment: how similarities become scores.
    """

    def __init__(self, model: ChanModel, tokenizer: ScanTokenizer | BertTokenizer) -> None:
        self.model = model.eval()
        self.alignment: AlignmentConfig = model.config.alignment
        self.tokenizer = tokenizer

    @classmethod
    def open(cls, path: str | Path) -> ReferenceMatcher:
        """Load a native checkpoint; raises CheckpointError as `checkpoint.load` and `open_tokenizer` do."""
        loaded = checkpoint.load(path)
        return cls(loaded.model, open_tokenizer(loaded, path))

    @property
    def max_words(self) -> int | None:
        """The largest number of wordpieces of a caption that BERT has positions for; None for a GRU."""
        return self.model.config.max_words

    def encode_images(self, regions: NDArray[np.float32], lengths: NDArray[np.int32]) -> Embeddings:
        """Encode region features [B, R, F] with lengths [B] as region embeddings."""
        with torch.inference_mode():
            vectors = self.model.encode_regions(torch.from_numpy(regions), torch.from_numpy(lengths))
        return Embeddings(vectors.numpy(), lengths)

    def encode_texts(self, captions: Sequence[str]) -> Embeddings:
        """Encode captions as word embeddings."""
        batch = self.tokenizer.encode(captions)
        with torch.inference_mode():
            vectors = self.model.encode_words(torch.from_numpy(batch.ids), torch.from_numpy(batch.lengths))
        return Embeddings(vectors.numpy(), batch.lengths)

    def score(self, images: Embeddings, texts: Embeddings) -> NDArray[np.float32]:
        """Compute the scores [I, C] of I images and C captions, with all similarities in memory at once."""
        arrays = (images.vectors, images.lengths, texts.vectors, texts.lengths)
        with torch.inference_mode():
            found: NDArray[np.float32] = self.model.score(*(torch.from_numpy(array) for array in arrays)).numpy()
        return found


def read_tokenizer(files: Mapping[str, bytes]) -> ScanTokenizer | BertTokenizer:
    """Read the tokenizer from a checkpoint's files.

    Raises:
        CheckpointError: no file is a tokenizer.
        BundleError: the tokenizer is damaged.
    """
    if "vocab.json" in files:
        try:
            return ScanTokenizer(json.loads(files["vocab.json"])["word2idx"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = reason_of(error)
            raise BundleError(f"vocab.json must be a vocabulary {{word2idx, idx2word, idx}}: {reason}") from error
    if "tokenizer.json" in files:
        return BertTokenizer(files["tokenizer.json"].decode())
    raise CheckpointError(
        f"the tokenizer folder must contain vocab.json or tokenizer.json, got {', '.join(sorted(files)) or 'no files'}"
    )


def open_tokenizer(loaded: checkpoint.Checkpoint, path: str | Path) -> ScanTokenizer | BertTokenizer:
    """Read the tokenizer of the checkpoint at PATH, and check that it fits the model.

    A tokenizer with more ids than the word embedding has rows would index past it; one with fewer belongs to another
    model, where the ids stand for other words.

    Raises:
        CheckpointError: there is no tokenizer, it is damaged, or its size is not that of the word embedding.
    """
    try:
        tokenizer = read_tokenizer(loaded.tokenizer_files)
    except (BundleError, CheckpointError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    config = loaded.model.config
    rows = config.vocab_size if config.bert is None else config.bert.vocab_size
    if tokenizer.vocab_size != rows:
        raise CheckpointError(
            f"{path}: its tokenizer has {tokenizer.vocab_size} ids and its word embedding {rows} rows: put the "
            "tokenizer it was trained with into it, or import or train it again"
        )
    return tokenizer
