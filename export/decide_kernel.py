"""The GPU kernel of the last step, in Triton: rows' largest float64 similarities with a query, by the fine copy.

Only `kernels.py` (ahead of time) and the tests (interpreted) import this module, as scan_kernels.py.

A similarity is summed as runtime/gallery/proof/true_score.py has it, so it is the same to the bit: eight partial sums,
lane l of elements l, l + 8, ..., then halves of them added. A product of two float32 numbers is exact in float64, so a
fused multiply-add rounds as a product and a sum do.
"""

import triton
import triton.language as tl


@triton.jit
def decide(
    fine,  # float32, float16, or uint8 (the lower bytes of fixed16): where the first fine copy lies
    fine_places,  # int64 [rows], where each row's fine copy begins beyond that, in units of UNIT elements
    codes,  # int8, where the first codes lie; fixed16 has its upper bytes there
    places,  # int64 [rows], where each row's codes begin beyond that, in units of CODES_UNIT
    row_scale,  # float32 [rows]
    lengths,  # int32 [rows], how many vectors each row has
    found,  # int32 [queries], how long each query's list is
    listed_rows,  # int32 [queries, capacity]
    chosen,  # int32 [pairs], places in `listed_rows`; beyond a list's length they are passed over
    query,  # float32 [words of all queries, WIDTH]
    word_starts,  # int32 [queries + 1]
    decided,  # int32 [pairs], the row of each pair
    maxima,  # float64 [pairs, stride], for each of the query's vectors the largest similarity over the row's vectors
    winners,  # int32 [pairs, stride], the first vector that reaches it
    capacity,
    stride,
    tiles,
    dim,
    FORM: tl.constexpr,
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    CODES_UNIT: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """One row and BLOCK_W of a query's vectors."""
    pair = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles * BLOCK_W
    at = tl.load(chosen + pair)
    which = at // capacity
    begin = tl.load(word_starts + which)
    words = tl.load(word_starts + which + 1) - begin
    if (at % capacity < tl.load(found + which)) & (tile < words):
        row = tl.load(listed_rows + at)
        count = tl.load(lengths + row)
        vectors = fine + tl.load(fine_places + row) * UNIT
        upper = codes + tl.load(places + row) * CODES_UNIT
        unit = tl.load(row_scale + row) * 0.00390625  # 1 / 256; a quotient would be rounded
        word = tile + tl.arange(0, BLOCK_W)
        lane = tl.arange(0, 8)
        word_at = query + (begin + tl.minimum(word, words - 1)).to(tl.int64)[:, None] * WIDTH + lane[None, :]
        best = tl.full([BLOCK_W], float("-inf"), tl.float64)
        winner = tl.zeros([BLOCK_W], tl.int32)
        for first in range(0, count, BLOCK_R):
            place = first + tl.arange(0, BLOCK_R)
            vector_at = tl.minimum(place, count - 1)[:, None] * WIDTH + lane[None, :]
            sums = tl.zeros([BLOCK_R, BLOCK_W, 8], tl.float64)
            for step in range(0, dim, 8):  # elements beyond the dimension are 0
                value = tl.load(vectors + vector_at + step)
                if FORM == "fixed16":  # exact in float32, see fixed16.py
                    integer = tl.load(upper + vector_at + step).to(tl.int32) * 256 + value.to(tl.int32) - 128
                    value = integer.to(tl.float32) * unit
                left = value.to(tl.float64)[:, None, :]
                right = tl.load(word_at + step).to(tl.float64)[None, :, :]
                sums = tl.fma(left, right, sums)
            for half in tl.static_range(3):
                low, high = tl.split(tl.trans(tl.reshape(sums, [BLOCK_R, BLOCK_W, 2, 4 >> half]), 0, 1, 3, 2))
                sums = low + high
            product = tl.reshape(sums, [BLOCK_R, BLOCK_W])
            product = tl.where((place < count)[:, None], product, float("-inf"))
            largest, owner = tl.max(product, axis=0, return_indices=True)  # the first of equal ones
            winner = tl.where(largest > best, first + owner, winner)
            best = tl.maximum(best, largest)
        target = pair * stride + word
        tl.store(maxima + target, best, mask=word < words)
        tl.store(winners + target, winner, mask=word < words)
        if tile == 0:
            tl.store(decided + pair, row)
