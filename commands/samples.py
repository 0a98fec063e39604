"""What `chan calibrate` and `chan sensitivity` share: the samples of a split, as the calibration wants them."""

from __future__ import annotations

from pathlib import Path

from ..calibration.feeds import Samples
from ..runtime.contract import Manifest
from ..runtime.data.fitting import fit_captions
from ..runtime.data.images import CaptionedImages, open_sample
from ..runtime.errors import InputError
from ..runtime.text import load_tokenizer


def open_samples(bundle: Path, data: Path, split: str, count: int) -> tuple[CaptionedImages, Samples]:
    """`count` images spread evenly over a split with all their captions, and what a calibration feeds of them."""
    manifest = Manifest.load(bundle)
    tokenizer = load_tokenizer(bundle, manifest.tokenizer)
    images = fit_captions(open_sample(data, split, count, bundle), tokenizer, manifest.max_words)
    pictures = tuple(file for file in images.pictures() if file is not None)
    tokens = tokenizer.encode(images.captions)
    try:
        return images, Samples(images.regions, images.num_images, tokens, pictures)
    except InputError as error:  # it counts the samples, and the split is known here
        hint = "choose another with --split, or add images with captions to it"
        raise InputError(f"the split {split} of {data} is too small: {error}; {hint}") from error
