"""The kernels `quantize` and `terms` in numpy: what each must leave in memory."""

from itertools import pairwise
from typing import Any

import numpy as np

from chan_rt.runtime.gallery.cuda.kernels import UNIT
from chan_rt.runtime.gallery.proof.bounds import MOST_BLOCKS, quantize_query
from chan_rt.runtime.gallery.proof.prefix import CODE_AXES


def quantize(precision: str, width: int, device: Any, blocks: int, exact, word_of, query, word_scale, norms, errors,
             places) -> None:  # fmt: skip
    """Codes of the vectors that have places, by bounds.py; zeros elsewhere."""
    assert blocks == places
    planes = 2 if precision == "int8" else 1
    kind = np.int8 if planes == 2 else np.float16
    words = device.array(word_of, np.int32)[:places]
    named = np.flatnonzero(words >= 0)
    vectors = device.array(exact, np.float32)[: (words.max() + 1) * width].reshape(-1, width)[words[named]]
    target = device.array(query, kind)[: planes * places * width].reshape(planes, places, width)
    scales = device.array(word_scale, np.float64)[:places]
    target[...], scales[...] = 0, 0
    if planes == 2:
        quantized = quantize_query(vectors, per_vector=True)
        target[:, named], scales[named] = quantized.planes, quantized.scale
        device.array(norms, np.float64)[words[named]] = np.square(quantized.vectors).sum(axis=1)
        device.array(errors, np.float64)[words[named]] = np.square(quantized.lost).sum(axis=1)
        return
    peak = np.abs(vectors.astype(np.float64)).max(axis=1)
    scales[named] = np.where(peak > 0, peak, 1.0)
    target[0, named] = vectors / scales[named, None]


def terms(pooling: str, width: int, device: Any, blocks: int, exact, norms, errors, word_starts, axes, axes_places,
          block_of, held, target, margins, num_plans, dim, slope, temperature, lost, more,
          largest) -> None:  # fmt: skip
    """How far scores can be off, by (1), (1'), (3') and (2) of bounds.py."""
    queries = blocks // num_plans
    starts = device.array(word_starts, np.int32)[: queries + 1]
    columns = [
        device.array(int(axes) + UNIT * int(place), np.float64)[: width * CODE_AXES].reshape(width, CODE_AXES)
        if place >= 0
        else np.zeros((width, CODE_AXES))
        for place in device.array(axes_places, np.int64)[:num_plans]
    ]
    block, share = device.array(block_of, np.int32)[:CODE_AXES], device.array(held, np.float64)
    found = device.array(target, np.float64)[: blocks * (6 + MOST_BLOCKS)].reshape(queries, num_plans, -1)
    for i, (begin, end) in enumerate(pairwise(starts)):
        vectors = device.array(exact, np.float32)[begin * width : end * width].reshape(-1, width).astype(np.float64)
        square = device.array(norms, np.float64)[begin:end]
        size, error = np.sqrt(square.max()), np.sqrt(device.array(errors, np.float64)[begin:end].max())
        change = slope * (end - begin if pooling == "Sum" else 1)
        per_size = 16 * 2.0**-53 * (dim + end - begin + 16)
        device.array(margins, np.float64)[i] = 2 * change * per_size * (size * largest + temperature) * more
        by_norm = change * size * (per_size + 4 * 2.0**-24)
        for plan in range(num_plans):
            energy = np.square(vectors @ columns[plan])
            rest = np.maximum(square - share[plan] * energy.sum(axis=1), 0) + 4 * lost * square
            along = [np.sqrt(energy[:, block == j].sum(axis=1).max()) + lost * size for j in range(MOST_BLOCKS)]
            first = change * per_size * temperature, change, by_norm + change * error, by_norm, size
            found[i, plan] = np.array([*first, np.sqrt(rest.max()), *along]) * more
