"""Pointing accuracy: how often a word that names a picture chooses a region of that picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.embeddings import Embeddings
from ..runtime.errors import InputError, reason_of


@dataclass(frozen=True)
class Pointing:
    """How often words choose a region of the picture they name.

    Attributes:
        accuracy: share of mentions whose region has its center in the box of the named picture.
        chance: the same share for regions chosen at random with equal probability.
        ceiling: share of mentions whose box contains the center of any region; thin pictures may contain none.
        mentions: number of mentions.
    """

    accuracy: float
    chance: float
    ceiling: float
    mentions: int


def pointing_accuracy(
    chosen: Sequence[npt.NDArray[np.integer[Any]]], data: str | Path, split: str, grid: int
) -> Pointing:
    """Score the regions that the words of every caption of a split chose in the caption's own picture.

    A name of several words points where its last word, the noun, does.

    Args:
        chosen: for each caption of the split, in file order, the region (0 to grid * grid - 1, row by row) each of its
            tokens chose, `<start>` first; padding behind the last token is ignored.
        data: a folder `chan scenes` wrote.
        split: train, dev or test.
        grid: G; region r is the cell at row r // G and column r % G of the picture.

    Raises:
        InputError: `data` has no boxes for that split, or `chosen` does not fit its captions.
    """
    canvas, records = read_boxes(data, split)
    mentions = [(record, words) for record in records for words in record["mentions"]]
    if len(chosen) != len(mentions):
        raise InputError(f"chosen must have one row for each of {len(mentions)} captions, got {len(chosen)}")
    side = canvas / grid
    y, x = (np.mgrid[:grid, :grid].reshape(2, -1) + 0.5) * side  # [G * G] centers in pixels
    hits, inside = [], []
    for regions, (record, words) in zip(chosen, mentions, strict=True):
        for mention in words:
            token = mention["stop"]  # of the name's last word: `<start>` is token 0
            if token >= len(regions) or not 0 <= regions[token] < grid * grid:
                raise InputError(
                    f"chosen must have a region from 0 to {grid * grid - 1} for token {token} of a caption"
                )
            x0, y0, x1, y1 = record["boxes"][mention["box"]]["box"]
            within = (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)
            hits.append(within[regions[token]])
            inside.append(within.mean())
    cover = np.array(inside)
    return Pointing(float(np.mean(hits)), float(cover.mean()), float((cover > 0).mean()), len(hits))


def chosen_regions(
    images: Embeddings, texts: Embeddings, image_of_caption: npt.NDArray[np.integer[Any]]
) -> list[npt.NDArray[np.int64]]:
    """The region of a caption's own picture that each of its words is most similar to (ties: the lower index).

    Args:
        images: region embeddings [I, R, D], of the reference or of a runtime.
        texts: word embeddings [C, W, D].
        image_of_caption: [C].

    Returns:
        For each caption, a region for each of its words.
    """
    chosen = []
    for caption, image in enumerate(image_of_caption):
        regions = images.vectors[image, : images.lengths[image]]
        words = texts.vectors[caption, : texts.lengths[caption]]
        chosen.append((regions @ words.T).argmax(0))
    return chosen


def read_boxes(data: str | Path, split: str) -> tuple[int, list[dict[str, Any]]]:
    """The canvas's side in pixels and one record a scene: `image`, `boxes`, and `mentions` of its five captions.

    Raises:
        InputError: no readable boxes.json, or none of that split.
    """
    path = Path(data) / "boxes.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["canvas"], content["splits"][split]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} must hold the boxes of {split!r}, as `chan scenes` writes them: {reason_of(error)}"
        ) from error
