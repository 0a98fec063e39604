"""Recalls of a model in training, on its device. Each image is encoded once, and scores are computed in blocks."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..runtime.data.fitting import cut_texts
from ..runtime.data.images import CaptionedImages
from ..runtime.evaluation import metrics
from ..runtime.text import TokenBatch, Tokenizer
from .model import ChanModel

_IMAGES, _CAPTIONS = 128, 512  # encoded at once
_BLOCK_SIMILARITIES = 1 << 25  # region-word similarities held at once: 128 MB of float32


def evaluate(images: CaptionedImages, model: ChanModel, tokenizer: Tokenizer, device: str) -> metrics.Metrics:
    """Compute the recalls of a model, in evaluation mode, on images with captions. Its mode is restored afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            texts, _ = cut_texts(images.captions, tokenizer, model.config.max_words)
            scores = _scores(images, model, tokenizer.encode(texts), device)
    finally:
        model.train(training)
    return metrics.evaluate(scores, images.image_of_caption)


def chance_rsum(num_images: int, image_of_caption: NDArray[np.int64]) -> float:
    """Return the rsum that random scores have on average, in points, for the image of each caption [C]."""
    captions = len(image_of_caption)
    of_image = np.bincount(image_of_caption, minlength=num_images)
    total = 0.0
    for k in (1, 5, 10):
        drawn = np.arange(min(k, captions))
        # the k best captions miss all n of an image: one draw after another from the other captions
        left = np.maximum(captions - of_image[:, None] - drawn, 0) / (captions - drawn)
        total += 100 * float(1 - left.prod(axis=1).mean()) + 100 * min(1.0, k / num_images)
    return total


def _scores(images: CaptionedImages, model: ChanModel, tokens: TokenBatch, device: str) -> NDArray[np.float32]:
    """Score all pairs [I, C]. Captions are sorted by length first, so that blocks contain little padding."""
    regions, region_lengths = [], []
    for start in range(0, images.num_images, _IMAGES):
        features, counts = images.regions(slice(start, start + _IMAGES))
        on_device = torch.from_numpy(counts).to(device)
        regions.append(model.encode_regions(torch.from_numpy(features).to(device), on_device))
        region_lengths.append(on_device)
    order = np.argsort(tokens.lengths, kind="stable")
    scores = np.empty((images.num_images, images.num_captions), np.float32)
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
