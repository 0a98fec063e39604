"""What `chan calibrate` and `chan sensitivity` share: the samples of a split, as the calibration wants them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..calibration.feeds import Samples
from ..export.parity.runners import open_sample
from ..runtime.contract import Manifest
from ..runtime.text import load_tokenizer


@dataclass(frozen=True)
class ChosenSamples:
    """Samples and, for each of their captions, the position of its image among them (int64 [C])."""

    samples: Samples
    image_of_caption: np.ndarray


def open_samples(bundle: Path, data: Path, split: str, count: int) -> ChosenSamples:
    """`count` images spread evenly over a split, with all their captions, tokenized as the bundle does."""
    chosen = open_sample(data, split, count, bundle)
    tokens = load_tokenizer(bundle, Manifest.load(bundle).tokenizer).encode(chosen.captions)
    return ChosenSamples(Samples(chosen.regions, chosen.num_images, tokens), chosen.image_of_caption)
