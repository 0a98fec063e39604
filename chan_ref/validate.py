"""Recalls of a model in training, on the device it trains on: each image encoded once, scores by blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..runtime.evaluation import metrics
from ..runtime.text import TokenBatch, Tokenizer
from .data import PrecompSplit
from .model import ChanModel

_IMAGES, _CAPTIONS = 128, 512  # encoded at once
_BLOCK_SIMILARITIES = 1 << 25  # region-word similarities held at once: 128 MB of float32


@dataclass(frozen=True)
class Validation:
    """Some images of a split with their captions.

    Attributes:
        split: where they are from.
        images: rows of the split.
        captions: [C].
        image_of_caption: [C], positions in `images`.
    """

    split: PrecompSplit
    images: NDArray[np.int64]
    captions: list[str]
    image_of_caption: NDArray[np.int64]

    @classmethod
    def of(cls, split: PrecompSplit, images: NDArray[np.int64]) -> Validation:
        """The images in these ascending rows, with all their captions."""
        rows = np.flatnonzero(np.isin(split.image_of_caption, images))
        owners = np.searchsorted(images, split.image_of_caption[rows])
        return cls(split, images, [split.captions[row] for row in rows], owners)

    def evaluate(self, model: ChanModel, tokenizer: Tokenizer, device: str) -> metrics.Metrics:
        """Recalls of the model as it is; its mode is restored."""
        training = model.training
        model.eval()
        try:
            with torch.inference_mode():
                scores = self._scores(model, tokenizer.encode(self.captions), device)
        finally:
            model.train(training)
        return metrics.evaluate(scores, self.image_of_caption)

    def _scores(self, model: ChanModel, tokens: TokenBatch, device: str) -> NDArray[np.float32]:
        """[I, C]. Captions are taken in the order of their length, so that blocks carry little padding."""
        regions, region_lengths = [], []
        for start in range(0, len(self.images), _IMAGES):
            features, counts = self.split.regions(self.images[start : start + _IMAGES])
            on_device = torch.from_numpy(counts).to(device)
            regions.append(model.encode_regions(torch.from_numpy(features).to(device), on_device))
            region_lengths.append(on_device)
        order = np.argsort(tokens.lengths, kind="stable")
        scores = np.empty((len(self.images), len(self.captions)), np.float32)
        for start in range(0, len(order), _CAPTIONS):
            columns = order[start : start + _CAPTIONS]
            lengths = torch.from_numpy(tokens.lengths[columns]).to(device)
            ids = torch.from_numpy(tokens.ids[columns, : int(lengths.max())]).to(device)
            words = model.encode_words(ids, lengths)
            row = 0
            for block, block_lengths in zip(regions, region_lengths, strict=True):
                step = max(1, _BLOCK_SIMILARITIES // (block.shape[1] * words.shape[0] * words.shape[1]))
                for first in range(0, len(block), step):
                    part = slice(first, first + step)
                    found: Tensor = model.score(block[part], block_lengths[part], words, lengths)
                    scores[row : row + len(found), columns] = found.float().cpu().numpy()
                    row += len(found)
        return scores
