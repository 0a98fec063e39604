"""The GPU kernel of the last step, in Triton: rows' largest float64 similarities with a query, by the fine copy.

Only `kernels.py` (ahead of time) and the tests (interpreted) import this module, as scan_kernels.py.

A similarity is summed as runtime/gallery/proof/true_score.py has it, so it is the same to the bit: eight partial sums,
lane l of elements l, l + 8, ..., then halves of them added. A product of two float32 numbers is exact in float64, so a
fused multiply-add rounds as a product and a sum do.

Few similarities need it. The codes' similarities, on tensor cores, are within e of these, by (1) or (1') of bounds.py.
So a vector whose similarity by the codes is smaller than the largest one by more than 2 e cannot hold the maximum, and
one that ties with the maximum is not left out. Words differ in how many vectors are left to them, so rounds of one
vector for each word would be mostly empty. Instead the pairs of a word and a vector that are left are numbered, and
each round sums the next SLOTS of them.
"""

import triton
import triton.language as tl

from .list_kernels import radius


@triton.jit
def decide(
    fine,  # float32, float16, or uint8 (the lower bytes of fixed16): where the first fine copy lies
    fine_places,  # int64 [rows], where each row's fine copy begins beyond that, in units of UNIT elements
    codes,  # int8, where the first codes lie
    places,  # int64 [rows], where each row's codes begin beyond that, in units of CODES_UNIT
    row_scale,  # float32 [rows]
    lengths,  # int32 [rows], how many vectors each row has
    error,  # as of `radius`
    norm,
    blocks,
    plans,
    terms,
    found,  # int32 [queries], how long each query's list is
    listed_rows,  # int32 [queries, capacity]
    chosen,  # int32 [pairs], places in `listed_rows`; beyond a list's length they are passed over
    exact,  # float32 [words of all queries, WIDTH]
    word_starts,  # int32 [queries + 1]
    query,  # int8 [2, query_places, WIDTH], the same vectors' codes
    query_starts,  # int32 [queries], the place of each query's first vector there
    word_scale,  # float64 [query_places]
    decided,  # int32 [pairs], the row of each pair
    maxima,  # float64 [pairs, stride], for each of the query's vectors the largest similarity over the row's vectors
    winners,  # int32 [pairs, stride], the first vector that reaches it
    capacity,
    stride,
    tiles,
    rows,
    num_plans,
    query_places,
    share,
    FORM: tl.constexpr,
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    CODES_UNIT: tl.constexpr,
    POOLING: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """One row and BLOCK_W of a query's vectors.

    share: 2 e as a share of how far the row's score can be off; of Sum, of that by all of the query's vectors.
    """
    pair = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles * BLOCK_W
    at = tl.load(chosen + pair)
    which = (at // capacity).to(tl.int64)
    begin = tl.load(word_starts + which)
    words = tl.load(word_starts + which + 1) - begin
    if (at % capacity < tl.load(found + which)) & (tile < words):
        row = tl.load(listed_rows + at)
        slack = share * radius(terms, error, norm, blocks, plans, which, row, row >= 0, rows, num_plans, BLOCKS)
        if POOLING == "Sum":
            slack = slack / words
        count = tl.load(lengths + row)
        vectors = fine + tl.load(fine_places + row) * UNIT
        upper = codes + tl.load(places + row) * CODES_UNIT
        scale = tl.load(row_scale + row)
        unit = scale * 0.00390625  # 1 / 256; a quotient would be rounded
        word = tile + tl.arange(0, BLOCK_W)
        own_word = tl.minimum(word, words - 1)
        k = tl.arange(0, BLOCK_K)
        lane = tl.arange(0, 8)
        plane = tl.load(query_starts + which) + own_word
        plane_at = query + plane.to(tl.int64)[None, :] * WIDTH + k[:, None]
        second = query_places.to(tl.int64) * WIDTH
        size = tl.load(word_scale + plane) * scale.to(tl.float64)
        words_at = exact + (begin + tile).to(tl.int64) * WIDTH + lane[None, :]
        slot = tl.arange(0, SLOTS)
        top = tl.full([BLOCK_W], float("-inf"), tl.float64)
        best = tl.full([BLOCK_W], float("-inf"), tl.float64)
        winner = tl.zeros([BLOCK_W], tl.int32)
        index = tl.arange(0, BLOCK_R)
        for first in range(0, count, BLOCK_R):
            place = first + index
            code_at = upper + tl.minimum(place, count - 1)[:, None] * WIDTH + k[None, :]
            high = tl.zeros([BLOCK_R, BLOCK_W], tl.int32)
            low = tl.zeros([BLOCK_R, BLOCK_W], tl.int32)
            for step in range(0, WIDTH, BLOCK_K):
                code = tl.load(code_at + step)
                high = tl.dot(code, tl.load(plane_at + step), high, out_dtype=tl.int32)
                low = tl.dot(code, tl.load(plane_at + second + step), low, out_dtype=tl.int32)
            product = (high.to(tl.float64) * 254.0 + low.to(tl.float64)) * size[None, :]
            product = tl.where((place < count)[:, None], product, float("-inf"))
            top = tl.maximum(top, tl.max(product, axis=0))
            left = ((product >= (top - slack)[None, :]) & (word < words)[None, :]).to(tl.int32)
            counts = tl.sum(left, axis=1)
            ends = tl.cumsum(counts, axis=0)
            total = tl.sum(counts, axis=0)
            for turn in range(0, total, SLOTS):
                number = tl.minimum(turn + slot, total - 1)  # of the pair that a slot has, vector by vector
                vector = tl.sum((ends[:, None] <= number[None, :]).to(tl.int32), axis=0)
                number -= tl.gather(ends - counts, vector, axis=0)
                among = tl.gather(left, tl.broadcast_to(vector[:, None], [SLOTS, BLOCK_W]), axis=0)
                column = tl.sum((tl.cumsum(among, axis=1) <= number[:, None]).to(tl.int32), axis=1)
                vector_at = (first + vector)[:, None] * WIDTH + lane[None, :]
                word_at = words_at + column[:, None] * WIDTH
                sums = tl.zeros([SLOTS, 8], tl.float64)
                # 64 elements at a time, so that as many loads are under way at once. Beyond the dimension the query's
                # elements are 0, and adding 0 changes no sum.
                for block in range(0, WIDTH, 64):
                    for part in tl.static_range(0, 64, 8):
                        step = block + part
                        value = tl.load(vectors + vector_at + step)
                        if FORM == "fixed16":  # exact in float32, see fixed16.py
                            integer = tl.load(upper + vector_at + step).to(tl.int32) * 256 + value.to(tl.int32) - 128
                            value = integer.to(tl.float32) * unit
                        sums = tl.fma(value.to(tl.float64), tl.load(word_at + step).to(tl.float64), sums)
                for half in tl.static_range(3):
                    one, other = tl.split(tl.trans(tl.reshape(sums, [SLOTS, 2, 4 >> half]), 0, 2, 1))
                    sums = one + other
                own = column[:, None] == tl.arange(0, BLOCK_W)[None, :]  # at the end the last pair, several times
                similarity = tl.where(own, tl.reshape(sums, [SLOTS, 1]), float("-inf"))
                most, at_slot = tl.max(similarity, axis=0, return_indices=True)  # of equal ones the first
                better = most > best
                winner = tl.where(better, first + tl.gather(vector, at_slot, axis=0), winner)
                best = tl.where(better, most, best)
        target = pair * stride + word
        tl.store(maxima + target, best, mask=word < words)
        tl.store(winners + target, winner, mask=word < words)
        if tile == 0:
            tl.store(decided + pair, row)
