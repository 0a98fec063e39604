"""What training changes in its inputs: regions dropped, words hidden, swapped or removed (VSE-infinity)."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)

_MASKED, _RANDOM = 0.5, 0.6  # of the words changed: half masked, a tenth random, the rest removed


def drop_regions(
    regions: NDArray[np.float32], lengths: NDArray[np.int32], share: float, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Drop each region with probability `share`, the others closing up in order; at least one stays.

    Args:
        regions: [B, R, F].
        lengths: [B].

    Returns:
        Regions [B, R', F], where R' is the largest number kept, and their lengths [B]. What lies past a length is
        arbitrary.
    """
    valid = np.arange(regions.shape[1]) < lengths[:, None]
    draws = rng.random(valid.shape)
    kept = valid & (draws >= share)
    # An image that would lose all keeps the one that was drawn highest.
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

    The marks of a caption's start and end stay.

    Args:
        ids: [B, W].
        lengths: [B].

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
