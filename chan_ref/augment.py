"""Augmentation of training inputs: regions are dropped; words are masked, swapped or removed (VSE-infinity)."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)

_MASKED, _RANDOM = 0.5, 0.6  # half of the changed words are masked, a tenth replaced, the rest removed


def drop_regions(
    regions: NDArray[np.float32], lengths: NDArray[np.int32], share: float, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Drop each region with probability `share` and move the others up, in order. Every image keeps at least one.

    Args:
        regions: [B, R, F].
        lengths: [B], integers in 1..R.
        share: probability of dropping a region, in [0, 1).
        rng: source of every draw.

    Returns:
        Regions [B, R', F], where R' is the largest number kept, and their lengths [B]. Rows past a length are
        arbitrary.
    """
    valid = np.arange(regions.shape[1]) < lengths[:, None]
    draws = rng.random(valid.shape)
    kept = valid & (draws >= share)
    # An image that would lose every region keeps the one with the highest draw.
    empty = ~kept.any(axis=1)
    kept[empty, np.where(valid, draws, -1.0).argmax(axis=1)[empty]] = True
    return _close_up(regions, kept)


def change_words(
    ids: NDArray[np.int32],
    lengths: NDArray[np.int32],
    share: float,
    mask_id: int,
    vocab_size: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Change each word with probability `share`: half become `mask_id`, a tenth any word, the rest are removed.

    The tokens that mark the start and the end of a caption are kept.

    Args:
        ids: [B, W].
        lengths: [B], integers in 1..W.
        share: probability of changing a word, in [0, 1).
        mask_id: id of the token that hides a word.
        vocab_size: random words have ids in 1..vocab_size - 1.
        rng: source of every draw.

    Returns:
        Ids [B, W'] with 0 past the new lengths [B].
    """
    columns = np.arange(ids.shape[1])
    inner = (columns > 0) & (columns < lengths[:, None] - 1)
    draws = rng.random(ids.shape) / share if share else np.ones(ids.shape)
    swapped = rng.integers(1, vocab_size, ids.shape, dtype=np.int32)
    changed = np.where(inner & (draws < _MASKED), np.int32(mask_id), ids)
    changed = np.where(inner & (draws >= _MASKED) & (draws < _RANDOM), swapped, changed)
    removed = inner & (draws >= _RANDOM) & (draws < 1)
    out, new_lengths = _close_up(changed, (columns < lengths[:, None]) & ~removed)
    out[np.arange(out.shape[1]) >= new_lengths[:, None]] = 0
    return out, new_lengths


def _close_up(rows: NDArray[T], kept: NDArray[np.bool_]) -> tuple[NDArray[T], NDArray[np.int32]]:
    """Move each sequence's kept entries to its front, in order, and cut to the longest."""
    lengths = kept.sum(axis=1, dtype=np.int32)
    order = np.argsort(~kept, axis=1, kind="stable")[:, : int(lengths.max())]
    return rows[np.arange(len(rows))[:, None], order], lengths
