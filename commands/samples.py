"""What `chan calibrate` and `chan sensitivity` share: the samples of a split, as the calibration wants them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..calibration.feeds import Samples, choose_rows
from ..chan_ref.data import PrecompSplit
from ..runtime.contract import Manifest
from ..runtime.text import load_tokenizer


@dataclass(frozen=True)
class ChosenSamples:
    """Samples and, for each of their captions, the position of its image among them (int64 [C])."""

    samples: Samples
    image_of_caption: np.ndarray


def open_samples(bundle: Path, data: Path, split: str, count: int) -> ChosenSamples:
    """`count` images spread evenly over a split, with all their captions, tokenized as the bundle does."""
    manifest = Manifest.load(bundle)
    source = PrecompSplit.open(data, split)
    rows = choose_rows(source.num_images, count)
    captions = np.nonzero(np.isin(source.image_of_caption, rows))[0]
    tokens = load_tokenizer(bundle, manifest.tokenizer).encode([source.captions[row] for row in captions])
    samples = Samples(regions=lambda part: source.regions(rows[part]), num_images=len(rows), tokens=tokens)
    return ChosenSamples(samples, np.searchsorted(rows, source.image_of_caption[captions]))
