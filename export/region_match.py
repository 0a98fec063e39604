"""Regions with boxes of two runs of one backbone, matched by where they are.

A detector chooses and orders its regions by confidences. Rounding may swap two that are equally confident, and in half
a region may be another one. So regions are compared with those of the same place, and how many have none is a figure
of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAME_PLACE = 0.9  # intersection over union of two boxes of one region


@dataclass(frozen=True)
class Matched:
    """Regions that two runs have in common.

    Attributes:
        reference, candidate: their features, [M, F] each, in the same order.
        found: how many of the reference's regions the candidate has, in percent.
    """

    reference: NDArray[np.float32]
    candidate: NDArray[np.float32]
    found: float


def match_regions(reference: Mapping[str, NDArray[Any]], candidate: Mapping[str, NDArray[Any]]) -> Matched:
    """Match the regions of a batch, each picture by itself and each region once, the best overlaps first.

    Args:
        reference, candidate: `regions` [B, R, F], `boxes` [B, R, 4] and perhaps `region_lengths` [B] of the same
            pictures.
    """
    rows, columns, total = [], [], 0
    for picture in range(len(reference["boxes"])):
        mine, other = _length(reference, picture), _length(candidate, picture)
        pairs = _pairs(reference["boxes"][picture, :mine], candidate["boxes"][picture, :other])
        rows += [(picture, row) for row, _ in pairs]
        columns += [(picture, column) for _, column in pairs]
        total += mine
    first, second = np.array(rows, np.intp).reshape(-1, 2).T, np.array(columns, np.intp).reshape(-1, 2).T
    return Matched(
        reference["regions"][tuple(first)], candidate["regions"][tuple(second)], 100 * len(rows) / max(1, total)
    )


def _length(outputs: Mapping[str, NDArray[Any]], picture: int) -> int:
    lengths = outputs.get("region_lengths")
    return outputs["boxes"].shape[1] if lengths is None else int(lengths[picture])


def _pairs(reference: NDArray[Any], candidate: NDArray[Any]) -> list[tuple[int, int]]:
    """Places of boxes that overlap by SAME_PLACE or more, each at most once."""
    overlap = _overlaps(reference.astype(np.float64), candidate.astype(np.float64))
    pairs: dict[int, int] = {}
    for flat in np.argsort(-overlap, axis=None, kind="stable"):
        row, column = divmod(int(flat), overlap.shape[1])
        if overlap[row, column] < SAME_PLACE:
            break
        if row not in pairs and column not in pairs.values():
            pairs[row] = column
    return sorted(pairs.items())


def _overlaps(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of boxes [R, 4] and [Q, 4], left, top, width and height: [R, Q]."""
    start = np.maximum(reference[:, None, :2], candidate[None, :, :2])
    ends = reference[:, :2] + reference[:, 2:], candidate[:, :2] + candidate[:, 2:]
    size = (np.minimum(ends[0][:, None], ends[1][None]) - start).clip(0)
    shared = size.prod(2)
    union = reference[:, 2:].prod(1)[:, None] + candidate[:, 2:].prod(1)[None] - shared
    same = (reference[:, None] == candidate[None]).all(2)
    result: NDArray[np.float64] = np.where(same, 1.0, shared / np.where(union > 0, union, 1.0))
    return result
