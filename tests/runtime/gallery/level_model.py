"""The kernels `bound` and `reach` in numpy: what they must leave in memory."""

from typing import Any

import numpy as np

from chan_rt.runtime.gallery.cuda.kernels import BOUND_ROWS, UNIT, WORD_TILES


def pooled(values: np.ndarray, pooling: str, temperature: float) -> np.ndarray:
    """Scores of values [rows, words]."""
    scaled = values / temperature
    return {
        "LSE": lambda: np.log(np.exp(scaled - scaled.max(1, keepdims=True)).sum(1)) + scaled.max(1),
        "Max": lambda: values.max(1),
        "Mean": lambda: values.mean(1),
        "Sum": lambda: values.sum(1),
    }[pooling]()


def bound(tile: int, stride: int, pooling: str, device: Any, blocks: int, levels, places, lengths, allowed, query,
          word_starts, word_scale, word_offset, upper, scores, rows, words, queries, temperature) -> None:  # fmt: skip
    """Every row's upper bound, infinite where it has no coded vectors, and -inf as its score."""
    assert blocks == -(-rows // BOUND_ROWS[WORD_TILES.index(tile)]) * queries
    places, lengths = device.array(places, np.int64)[:rows], device.array(lengths, np.int32)[:rows]
    allowed = device.array(allowed, np.uint8)[:rows] != 0
    starts = device.array(word_starts, np.int32)[: queries + 1]
    digits = device.array(query, np.int8)[: 2 * words * stride].reshape(2, words, stride).astype(np.int64)
    scale, offset = (device.array(at, np.float64)[:words] for at in (word_scale, word_offset))
    for which in range(queries):
        own = slice(starts[which], starts[which + 1])
        integers = 128 * digits[0, own] + digits[1, own]
        found = np.where(allowed, np.inf, -np.inf)
        for row in np.flatnonzero(allowed & (places >= 0)):
            at, count = int(levels) + int(places[row]) * UNIT, int(lengths[row])
            coded = device.array(at, np.int8)[: count * stride].reshape(count, stride).astype(np.int64)
            sums = coded @ integers.T
            assert np.abs(sums).max() < 1 << 31
            value = sums.max(axis=0) * scale[own] + offset[own]
            found[row] = pooled((value + np.abs(value) * 2.0**-40)[None], pooling, temperature)[0]
        target = slice(which * rows, (which + 1) * rows)
        device.array(upper, np.float64)[target] = found
        device.array(scores, np.float64)[target] = -np.inf


def reach(most: int, pooling: str, device: Any, blocks: int, maxima, found, word_starts, margins, thresholds, k, picks,
          stride, temperature) -> None:  # fmt: skip
    """Each query's threshold is raised to the k-th largest score of its picked rows."""
    assert picks <= most
    queries = blocks
    starts = device.array(word_starts, np.int32)[: queries + 1]
    values = device.array(maxima, np.float64)[: queries * picks * stride].reshape(queries, picks, stride)
    for which in range(queries):
        count = min(int(device.array(found, np.int32)[which]), picks)
        if count < k:
            continue
        score = pooled(values[which, :count, : starts[which + 1] - starts[which]], pooling, temperature)
        kth = np.sort(score)[count - k] - device.array(margins, np.float64)[which]
        target = device.array(thresholds, np.float64)
        target[which] = max(target[which], kth)
