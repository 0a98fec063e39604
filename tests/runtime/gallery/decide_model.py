"""The kernel `decide` in numpy: what it must leave in memory, by the functions that define a true score."""

from typing import Any

import numpy as np

from chan_rt.runtime.gallery.cuda.kernels import DECIDE_WORDS, UNIT
from chan_rt.runtime.gallery.proof.fixed16 import join_bytes
from chan_rt.runtime.gallery.proof.true_score import inner_products

_TYPES = {"float32": np.float32, "float16": np.float16, "fixed16": np.uint8}


def decide(form: str, width: int, device: Any, blocks: int, fine, fine_places, codes, places, row_scale, lengths,
           error, norm, around, plans, terms, found, listed_rows, chosen, exact, word_starts, query, query_starts,
           word_scale, decided, maxima, winners, capacity, stride, tiles, rows, num_plans, query_places,
           share) -> None:  # fmt: skip
    """Every chosen pair of a list's row and its query; what lies beyond a list's end stays as it was."""
    assert blocks % tiles == 0
    assert tiles == -(-stride // DECIDE_WORDS)
    pairs = blocks // tiles
    kind = np.dtype(_TYPES[form])
    places, fine_places = device.array(places, np.int64), device.array(fine_places, np.int64)
    starts, found = device.array(word_starts, np.int32), device.array(found, np.int32)
    for pair, at in enumerate(device.array(chosen, np.int32)[:pairs].tolist()):
        which, place = divmod(at, int(capacity))
        if place >= found[which]:
            continue
        row = int(device.array(listed_rows, np.int32)[at])
        count, begin, end = int(device.array(lengths, np.int32)[row]), int(starts[which]), int(starts[which + 1])
        vectors = device.array(int(fine) + int(fine_places[row]) * UNIT, kind)[: count * width].reshape(count, width)
        if form == "fixed16":
            upper = device.array(int(codes) + int(places[row]) * UNIT, np.uint8)[: count * width].reshape(count, width)
            scale = np.full(count, device.array(row_scale, np.float32)[row])
            vectors = join_bytes(upper ^ np.uint8(128), vectors, scale)
        words = device.array(exact, np.float32)[begin * width : end * width].reshape(-1, width)
        left, right = vectors.astype(np.float64), words.astype(np.float64)
        products = np.stack([inner_products(left, np.broadcast_to(word, left.shape)) for word in right])  # [words, L]
        target = slice(pair * int(stride), pair * int(stride) + end - begin)
        device.array(decided, np.int32)[pair] = row
        device.array(maxima, np.float64)[target] = products.max(axis=1)
        device.array(winners, np.int32)[target] = products.argmax(axis=1)
