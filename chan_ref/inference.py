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
from ..runtime.errors import CheckpointError
from ..runtime.text import BertTokenizer, ScanTokenizer
from . import checkpoint
from .model import ChanModel


class ReferenceMatcher:
    """Encodes and scores with a checkpoint, as its reference in PyTorch does.

    Attributes:
        model: in evaluation mode.
        alignment: how similarities become scores.
    """

    def __init__(self, model: ChanModel, tokenizer_files: Mapping[str, bytes]) -> None:
        self.model = model.eval()
        self.alignment: AlignmentConfig = model.config.alignment
        self.tokenizer = read_tokenizer(tokenizer_files)

    @classmethod
    def open(cls, path: str | Path) -> ReferenceMatcher:
        """Load a native checkpoint; CheckpointError as `checkpoint.load` raises it."""
        loaded = checkpoint.load(path)
        return cls(loaded.model, loaded.tokenizer_files)

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
    """The tokenizer of a checkpoint's files; CheckpointError where there is none."""
    if "vocab.json" in files:
        return ScanTokenizer(json.loads(files["vocab.json"])["word2idx"])
    if "tokenizer.json" in files:
        return BertTokenizer(files["tokenizer.json"].decode())
    raise CheckpointError(f"the checkpoint has no vocab.json and no tokenizer.json, only {sorted(files) or 'no files'}")
