"""The kernels `project`, `weigh`, `bound`, `reach` and `select` in numpy: what they must leave in memory."""

from typing import Any

import numpy as np

from chan_rt.runtime.gallery.cuda.kernels import (
    BOUND_ROWS,
    MOST_NORMS,
    PROJECT_AXES,
    PROJECT_WORDS,
    UNIT,
    WORD_TILES,
)
from chan_rt.runtime.gallery.proof.prefix import AXES
from chan_rt.runtime.gallery.proof.prefix_bounds import LARGEST


def pooled(values: np.ndarray, pooling: str, temperature: float) -> np.ndarray:
    """Scores of values [rows, words]."""
    scaled = values / temperature
    return {
        "LSE": lambda: np.log(np.exp(scaled - scaled.max(1, keepdims=True)).sum(1)) + scaled.max(1),
        "Max": lambda: values.max(1),
        "Mean": lambda: values.mean(1),
        "Sum": lambda: values.sum(1),
    }[pooling]()


def project(width: int, device: Any, blocks: int, exact, columns, coordinates, words) -> None:
    """Coordinates of every vector."""
    assert blocks == -(-words // PROJECT_WORDS) * (AXES // PROJECT_AXES)
    vectors = device.array(exact, np.float32)[: words * width].reshape(words, width).astype(np.float64)
    axes = device.array(columns, np.float64)[: width * AXES].reshape(width, AXES)
    device.array(coordinates, np.float64)[: words * AXES] = (vectors @ axes).reshape(-1)


def weigh(width: int, stride: int, device: Any, blocks: int, exact, norms, coordinates, mean, block_of, norm_steps,
          coordinate_of, steps, pooled, digits, word_scale, word_offset, words, num_norms, dim, coded, held, lost,
          size, middle, largest, temperature) -> None:  # fmt: skip
    """Every vector's integers, what they stand for, and its constant, by (3) of bounds.py."""
    assert blocks == words
    vectors = device.array(exact, np.float32)[: words * width].reshape(words, width).astype(np.float64)
    y = device.array(coordinates, np.float64)[: words * AXES].reshape(words, AXES)
    block, steps = device.array(block_of, np.int32)[:AXES], device.array(steps, np.float64)[:stride]
    norm_steps = device.array(norm_steps, np.float64)[:MOST_NORMS]
    square, more = device.array(norms, np.float64)[:words], 1 + 1e-9
    norm = np.sqrt(square) * more
    along = np.stack([np.sqrt(np.square(y[:, block == j]).sum(axis=1)) for j in range(num_norms - 2)], axis=1)
    left = np.maximum(square - held * np.square(y).sum(axis=1), 0) + 2 * lost * square
    along = np.concatenate([along * more + (lost * norm)[:, None], np.sqrt(left)[:, None] * more], axis=1)
    along *= norm_steps[: num_norms - 1] * more
    products = held * y[:, device.array(coordinate_of, np.int32)[:stride]] * steps
    most = np.maximum(along.max(axis=1), np.abs(products).max(axis=1))
    scale = np.where(most > 0, most / LARGEST * more, 1.0)[:, None]
    codes = np.rint(products / scale)
    last = np.sqrt(np.square(products - codes * scale).sum(axis=1)) * more * norm_steps[num_norms - 1]
    above = np.minimum(np.ceil(np.concatenate([along, last[:, None]], axis=1) / scale * more), LARGEST)
    total = 255 * scale[:, 0] * (above.sum(axis=1) + np.abs(codes).sum(axis=1)) * more
    rounding = 4 * (dim + coded) * 2.0**-53 * (norm * middle * more + total)
    rounding += 16 * 2.0**-53 * (dim + device.array(pooled, np.float64)[:words] + 16) * (norm * largest + temperature)
    dot = vectors @ device.array(mean, np.float64)[:width]
    integers = codes.astype(np.int64)
    integers[:, :num_norms] = above
    high = (integers + 64) >> 7
    device.array(digits, np.int8)[: 2 * words * stride] = np.stack([high, integers - (high << 7)]).reshape(-1)
    device.array(word_scale, np.float64)[:words] = scale[:, 0]
    offset = dot + lost * norm * size + 128 * scale[:, 0] * above.sum(axis=1) + rounding
    device.array(word_offset, np.float64)[:words] = offset


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


def select(most: int, pooling: str, device: Any, blocks: int, maxima, winners, decided, found, word_starts, margins,
           thresholds, kept_maxima, kept_winners, kept_rows, kept, k, picks, room, stride,
           temperature) -> None:  # fmt: skip
    """What could be among the best k of each query's picked rows, as far as there is room."""
    assert picks <= most
    queries = blocks
    starts = device.array(word_starts, np.int32)[: queries + 1]
    columns = (maxima, kept_maxima, np.float64), (winners, kept_winners, np.int32)
    for which in range(queries):
        count, words = min(int(device.array(found, np.int32)[which]), picks), starts[which + 1] - starts[which]
        values = device.array(maxima, np.float64)[: queries * picks * stride].reshape(queries, picks, stride)
        score = pooled(values[which, :count, :words], pooling, temperature) if count else np.zeros(0)
        margin, least = (device.array(at, np.float64)[which] for at in (margins, thresholds))
        if count >= k:
            least = max(least, np.sort(score)[count - k] - margin)
        left = np.flatnonzero(score + margin >= least)
        device.array(kept, np.int32)[which] = len(left)
        left = left[:room]
        target = slice(which * room, which * room + len(left))
        device.array(kept_rows, np.int32)[target] = device.array(decided, np.int32)[which * picks + left]
        for source, copy, kind in columns:
            of_picks = device.array(source, kind)[: queries * picks * stride].reshape(queries, picks, stride)
            of_kept = device.array(copy, kind)[: queries * room * stride].reshape(-1, stride)
            of_kept[target, :words] = of_picks[which, left, :words]
