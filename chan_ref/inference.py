"""A checkpoint in PyTorch behind the methods of `runtime.matcher.Matcher`: numpy in, numpy out, on the CPU."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..runtime.contract import AlignmentConfig
from ..runtime.embeddings import Embeddings
from ..runtime.errors import BundleError, CheckpointError
from ..runtime.text import BertTokenizer, ScanTokenizer
from . import checkpoint
from .model import ChanModel


class ReferenceMatcher:
    """Encodes and scores with a checkpoint, as its reference in PyTorch does.

    Attributes:
        model: in evaluation mode.
        alignment: how similarities become scores.
    """

    def __init__(self, model: ChanModel, tokenizer: ScanTokenizer | BertTokenizer) -> None:
        self.model = model.eval()
        self.alignment: AlignmentConfig = model.config.alignment
        self.tokenizer = tokenizer

    @classmethod
    def open(cls, path: str | Path) -> ReferenceMatcher:
        """Load a native checkpoint; CheckpointError as `checkpoint.load` and `open_tokenizer` raise it."""
        loaded = checkpoint.load(path)
        return cls(loaded.model, open_tokenizer(loaded, path))

    def encode_images(self, regions: NDArray[np.float32], lengths: NDArray[np.int32]) -> Embeddings:
        """Region features [B, R, F] with lengths [B] -> region embeddings."""
        with torch.inference_mode():
            vectors = self.model.encode_regions(torch.from_numpy(regions), torch.from_numpy(lengths))
        return Embeddings(vectors.numpy(), lengths)

    def encode_texts(self, captions: Sequence[str]) -> Embeddings:
        """Captions -> word embeddings."""
        batch = self.tokenizer.encode(captions)
        with torch.inference_mode():
            vectors = self.model.encode_words(torch.from_numpy(batch.ids), torch.from_numpy(batch.lengths))
        return Embeddings(vectors.numpy(), batch.lengths)

    def score(self, images: Embeddings, texts: Embeddings) -> NDArray[np.float32]:
        """Scores [I, C], all similarities at once."""
        arrays = (images.vectors, images.lengths, texts.vectors, texts.lengths)
        with torch.inference_mode():
            found: NDArray[np.float32] = self.model.score(*(torch.from_numpy(array) for array in arrays)).numpy()
        return found


def read_tokenizer(files: Mapping[str, bytes]) -> ScanTokenizer | BertTokenizer:
    """The tokenizer of a checkpoint's files; CheckpointError where there is none, BundleError where it is damaged."""
    if "vocab.json" in files:
        try:
            return ScanTokenizer(json.loads(files["vocab.json"])["word2idx"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"vocab.json must be a vocabulary {{word2idx, idx2word, idx}}: {error!r}") from error
    if "tokenizer.json" in files:
        return BertTokenizer(files["tokenizer.json"].decode())
    raise CheckpointError(f"the checkpoint has no vocab.json and no tokenizer.json, only {sorted(files) or 'no files'}")


def open_tokenizer(loaded: checkpoint.Checkpoint, path: str | Path) -> ScanTokenizer | BertTokenizer:
    """The tokenizer of the checkpoint at PATH; CheckpointError unless it has an id for each row of the embedding.

    A larger one would index past the embedding, a smaller one is another model's: its ids mean other words.
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
