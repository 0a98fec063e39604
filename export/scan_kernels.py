"""The GPU scan's kernels, in Triton: a few rows a program, and a query or a tile of several; products stay on the chip.

Only `kernels.py` (ahead of time) and the tests (interpreted) import this module: it needs Triton, the runtime does not.

Exactness at int8: sums of products are exact in int32, as in runtime/gallery/kernels/base.py; `254 high + low` is
rounded to float32 at most four times; all that follows is float64, with CUDA's exponential and logarithm good to one
unit in the last place (CUDA C++ Programming Guide, mathematical functions). proof/bounds.py of galleries assumes that.
"""

import triton
import triton.language as tl


@triton.jit
def pool_more(peak, total, value, valid, temperature, POOLING: tl.constexpr):
    """Pool some words' values [ROWS, BLOCK_W], those that are `valid` [BLOCK_W], into what was pooled before."""
    if POOLING == "LSE":
        value = tl.where(valid[None, :], value / temperature, float("-inf"))
        top = tl.maximum(peak, tl.max(value, axis=1))
        total = total * tl.exp(peak - top) + tl.sum(tl.exp(value - top[:, None]), axis=1)
        peak = top
    elif POOLING == "Max":
        peak = tl.maximum(peak, tl.max(tl.where(valid[None, :], value, float("-inf")), axis=1))
    else:
        total += tl.sum(tl.where(valid[None, :], value, 0.0), axis=1)
    return peak, total


@triton.jit
def pool_all(peak, total, count, POOLING: tl.constexpr):
    """The score, once all `count` words were pooled."""
    if POOLING == "LSE":
        total = tl.log(total) + peak
    elif POOLING == "Max":
        total = peak
    elif POOLING == "Mean":
        total = total / count
    return total


@triton.jit
def score_rows(
    vectors,
    places,
    lengths,
    row_scale,
    row,  # int64 or int32 [ROWS]
    chosen,  # bool [ROWS]
    query,
    begin,
    end,
    word_scale,
    words,
    temperature,
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    PLANES: tl.constexpr,
    POOLING: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Scores of ROWS rows and one query: per query vector the largest product over each row, pooled."""
    first = tl.load(places + row, mask=chosen, other=0)
    count = tl.load(lengths + row, mask=chosen, other=0)
    scale = tl.load(row_scale + row, mask=chosen, other=0.0).to(tl.float64)
    k = tl.arange(0, BLOCK_K)
    vectors_at_once: tl.constexpr = ROWS * BLOCK_R
    columns: tl.constexpr = PLANES * BLOCK_W
    steps: tl.constexpr = WIDTH // BLOCK_K
    sum_type: tl.constexpr = tl.int32 if PLANES == 2 else tl.float32
    peak = tl.full([ROWS], float("-inf"), tl.float64)
    total = tl.full([ROWS], 0.0, tl.float64)
    turns = tl.cdiv(tl.max(count, axis=0), BLOCK_R) * steps
    for tile in range(begin, end, BLOCK_W):
        column = tl.arange(0, columns)
        column_word = tile + column % BLOCK_W
        column_at = column // BLOCK_W * words + column_word  # all planes of these words, side by side
        query_at = query + column_at[None, :].to(tl.int64) * WIDTH + k[:, None]
        valid_column = column_word < end
        best = tl.full([ROWS, BLOCK_W], float("-inf"), tl.float32)
        sums = tl.zeros([vectors_at_once, columns], sum_type)
        for turn in range(turns):  # one loop over every row's vectors and their values, so that loads never pause
            step = turn % steps * BLOCK_K
            place = turn // steps * BLOCK_R + tl.arange(0, BLOCK_R)
            vector = tl.reshape(first[:, None] * UNIT + place[None, :] * WIDTH, [vectors_at_once])
            vector = tl.multiple_of(vector, [UNIT])  # Triton 3.6 does not see it, and would read a byte at a time
            valid = tl.reshape(place[None, :] < count[:, None], [vectors_at_once])
            codes = tl.load(vectors + vector[:, None] + k[None, :] + step, mask=valid[:, None], other=0)
            plane = tl.load(query_at + step, mask=valid_column[None, :], other=0)
            sums = tl.dot(codes, plane, sums, out_dtype=sum_type)
            if step == WIDTH - BLOCK_K:
                product = sums.to(tl.float32)
                if PLANES == 2:
                    high, low = tl.split(tl.trans(tl.reshape(product, [vectors_at_once, PLANES, BLOCK_W]), 0, 2, 1))
                    product = high * 254.0 + low
                product = tl.where(valid[:, None], product, float("-inf"))
                best = tl.maximum(best, tl.max(tl.reshape(product, [ROWS, BLOCK_R, BLOCK_W]), axis=1))
                sums = tl.zeros([vectors_at_once, columns], sum_type)
        word = tile + tl.arange(0, BLOCK_W)
        valid_word = word < end
        value = best.to(tl.float64) * tl.load(word_scale + word, mask=valid_word, other=0.0)[None, :] * scale[:, None]
        peak, total = pool_more(peak, total, value, valid_word, temperature, POOLING)
    return pool_all(peak, total, end - begin, POOLING)


@triton.jit
def scan(
    vectors,  # int8 or float16: where the first vector lies
    places,  # int64 [rows], where each row's vectors begin beyond that, in units of UNIT elements
    lengths,  # int32 [rows], how many vectors each row has
    row_scale,  # float32 [rows]
    allowed,  # uint8 [rows]
    query,  # [PLANES, words, WIDTH], of the vectors' type
    word_starts,  # int32 [queries + 1]
    word_scale,  # float64 [words]
    scores,  # float64 [queries, rows]; -inf where a row is not allowed
    rows,
    words,
    queries,
    temperature,
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    PLANES: tl.constexpr,
    POOLING: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Scores of ROWS rows and one query."""
    row = tl.program_id(0) // queries * ROWS + tl.arange(0, ROWS)
    which = tl.program_id(0) % queries
    chosen = tl.load(allowed + row, mask=row < rows, other=0) != 0
    begin = tl.load(word_starts + which)
    end = tl.load(word_starts + which + 1)
    total = score_rows(
        vectors, places, lengths, row_scale, row, chosen, query, begin, end, word_scale, words, temperature,
        WIDTH, UNIT, PLANES, POOLING, ROWS, BLOCK_W, BLOCK_R, BLOCK_K,
    )  # fmt: skip
    target = scores + which.to(tl.int64) * rows + row
    tl.store(target, tl.where(chosen, total, float("-inf")), mask=row < rows)


@triton.jit
def scan_listed(
    vectors,  # as of `scan`
    places,
    lengths,
    row_scale,
    found,  # int32 [queries], how many rows are listed for each
    listed,  # int32 [queries, capacity], the rows
    query,
    word_starts,
    word_scale,
    scores,  # float64 [queries, rows]; only those of listed rows are written
    rows,
    words,
    queries,
    capacity,
    temperature,
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    PLANES: tl.constexpr,
    POOLING: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Scores of a query's listed rows, ROWS at a time: as many as there are, shared among the query's programs."""
    which = tl.program_id(0) % queries
    count = tl.minimum(tl.load(found + which), capacity)
    begin = tl.load(word_starts + which)
    end = tl.load(word_starts + which + 1)
    apart = tl.num_programs(0) // queries * ROWS
    for first in range(tl.program_id(0) // queries * ROWS, count, apart):
        place = first + tl.arange(0, ROWS)
        chosen = place < count
        row = tl.load(listed + which.to(tl.int64) * capacity + place, mask=chosen, other=0)
        total = score_rows(
            vectors, places, lengths, row_scale, row, chosen, query, begin, end, word_scale, words, temperature,
            WIDTH, UNIT, PLANES, POOLING, ROWS, BLOCK_W, BLOCK_R, BLOCK_K,
        )  # fmt: skip
        tl.store(scores + which.to(tl.int64) * rows + row, total, mask=chosen)


@triton.jit
def bound(
    levels,  # int8: where the first coded vector lies, its bytes less 128
    places,  # int64 [rows], where each row's coded vectors begin beyond that, in units of UNIT bytes; -1: it has none
    lengths,  # int32 [rows]
    allowed,  # uint8 [rows]
    query,  # int8 [2, words, WIDTH]: the digits of integers 128 high + low
    word_starts,  # int32 [queries + 1]
    word_scale,  # float64 [words]
    word_offset,  # float64 [words]
    upper,  # float64 [queries, rows]; infinite where a row has no coded vectors, -inf where it is not allowed
    scores,  # float64 [queries, rows]; becomes -inf
    rows,
    words,
    queries,
    temperature,
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    POOLING: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Upper bounds of scores of ROWS rows and one query, by (3) of bounds.py.

    Sums are exact in int32: at most 2^7 bytes of a size of 2^7, times integers below 2^14. All that follows is float64:
    a product and a sum for each word, and pooling. Each value is raised by 2^-40 of its size for that, which is more
    than these can lose for up to 2^12 words; the query's offsets allow for the rest (runtime/gallery/cuda/levels.py).
    """
    row = tl.program_id(0) // queries * ROWS + tl.arange(0, ROWS)
    which = tl.program_id(0) % queries
    chosen = tl.load(allowed + row, mask=row < rows, other=0) != 0
    first = tl.load(places + row, mask=chosen, other=-1)
    coded = first >= 0
    count = tl.load(lengths + row, mask=coded, other=0)
    begin = tl.load(word_starts + which)
    end = tl.load(word_starts + which + 1)
    k = tl.arange(0, WIDTH)
    vectors_at_once: tl.constexpr = ROWS * BLOCK_R
    columns: tl.constexpr = 2 * BLOCK_W
    peak = tl.full([ROWS], float("-inf"), tl.float64)
    total = tl.full([ROWS], 0.0, tl.float64)
    for tile in range(begin, end, BLOCK_W):
        column = tl.arange(0, columns)
        column_word = tile + column % BLOCK_W
        column_at = column // BLOCK_W * words + column_word  # both digits of these words, side by side
        query_at = query + column_at[None, :].to(tl.int64) * WIDTH + k[:, None]
        digits = tl.load(query_at, mask=(column_word < end)[None, :], other=0)
        best = tl.full([ROWS, BLOCK_W], -2147483648, tl.int32)
        for piece in range(0, tl.max(count, axis=0), BLOCK_R):
            place = piece + tl.arange(0, BLOCK_R)
            vector = tl.reshape(first[:, None] * UNIT + place[None, :] * WIDTH, [vectors_at_once])
            vector = tl.multiple_of(vector, [UNIT])
            valid = tl.reshape(place[None, :] < count[:, None], [vectors_at_once])
            codes = tl.load(levels + vector[:, None] + k[None, :], mask=valid[:, None], other=0)
            sums = tl.dot(codes, digits, out_dtype=tl.int32)
            high, low = tl.split(tl.trans(tl.reshape(sums, [vectors_at_once, 2, BLOCK_W]), 0, 2, 1))
            product = tl.where(valid[:, None], high * 128 + low, -2147483648)
            best = tl.maximum(best, tl.max(tl.reshape(product, [ROWS, BLOCK_R, BLOCK_W]), axis=1))
        word = tile + tl.arange(0, BLOCK_W)
        valid_word = word < end
        scale = tl.load(word_scale + word, mask=valid_word, other=0.0)
        offset = tl.load(word_offset + word, mask=valid_word, other=0.0)
        value = best.to(tl.float64) * scale[None, :] + offset[None, :]
        value += tl.abs(value) * 9.094947017729282e-13  # 2^-40
        peak, total = pool_more(peak, total, value, valid_word, temperature, POOLING)
    total = pool_all(peak, total, end - begin, POOLING)
    total = tl.where(coded, total, float("inf"))
    target = which.to(tl.int64) * rows + row
    tl.store(upper + target, tl.where(chosen, total, float("-inf")), mask=row < rows)
    tl.store(scores + target, tl.full([ROWS], float("-inf"), tl.float64), mask=row < rows)


@triton.jit
def pairs(
    vectors,  # as of `scan`
    places,
    lengths,
    row_scale,
    allowed,
    query,  # [PLANES, tiles * BLOCK_W, WIDTH]: a query's vectors fill the first of SLOT places
    counts,  # int32 [tiles * BLOCK_W / SLOT], how many
    word_scale,  # float64 [tiles * BLOCK_W]
    scores,  # float64 [queries, rows]; -inf where a row is not allowed
    rows,
    queries,
    tiles,
    temperature,
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    PLANES: tl.constexpr,
    POOLING: tl.constexpr,
    ROWS: tl.constexpr,
    SLOT: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Scores of ROWS rows and BLOCK_W / SLOT queries: one product of BLOCK_W by ROWS * BLOCK_R vectors at a time.

    Both sides pass through shared memory, and each is read once for all of the other.
    """
    tile = tl.program_id(0) % tiles
    row = tl.program_id(0) // tiles * ROWS + tl.arange(0, ROWS)
    chosen = tl.load(allowed + row, mask=row < rows, other=0) != 0
    first = tl.load(places + row, mask=chosen, other=0)
    count = tl.load(lengths + row, mask=chosen, other=0)
    scale = tl.load(row_scale + row, mask=chosen, other=0.0).to(tl.float64)
    k = tl.arange(0, BLOCK_K)
    sum_type: tl.constexpr = tl.int32 if PLANES == 2 else tl.float32
    word = tile * BLOCK_W + tl.arange(0, BLOCK_W)
    query_at = query + word[:, None].to(tl.int64) * WIDTH + k[None, :]
    second = tiles.to(tl.int64) * (BLOCK_W * WIDTH)
    best = tl.full([BLOCK_W, ROWS], float("-inf"), tl.float32)
    for piece in range(0, tl.max(count, axis=0), BLOCK_R):  # of every row's vectors
        place = piece + tl.arange(0, BLOCK_R)
        begins = first[:, None] * UNIT + place[None, :] * WIDTH
        valid = tl.reshape(place[None, :] < count[:, None], [ROWS * BLOCK_R])
        vector = tl.multiple_of(tl.reshape(begins, [ROWS * BLOCK_R]), [UNIT])
        vector_at = vectors + vector[None, :] + k[:, None]
        high = tl.zeros([BLOCK_W, ROWS * BLOCK_R], sum_type)
        low = tl.zeros([BLOCK_W, ROWS * BLOCK_R], sum_type)
        for step in range(0, WIDTH, BLOCK_K):
            codes = tl.load(vector_at + step, mask=valid[None, :], other=0)
            high = tl.dot(tl.load(query_at + step), codes, high, out_dtype=sum_type)
            if PLANES == 2:
                low = tl.dot(tl.load(query_at + second + step), codes, low, out_dtype=sum_type)
        product = high.to(tl.float32)
        if PLANES == 2:
            product = product * 254.0 + low.to(tl.float32)
        product = tl.where(valid[None, :], product, float("-inf"))
        best = tl.maximum(best, tl.max(tl.reshape(product, [BLOCK_W, ROWS, BLOCK_R]), axis=2))
    slots: tl.constexpr = BLOCK_W // SLOT
    which = tile * slots + tl.arange(0, slots)
    own = tl.load(counts + which)
    value = best.to(tl.float64) * tl.load(word_scale + word)[:, None] * scale[None, :]
    value = tl.reshape(value, [slots, SLOT, ROWS])
    named = (tl.arange(0, SLOT)[None, :] < own[:, None])[:, :, None]
    if POOLING == "LSE":
        value = tl.where(named, value / temperature, float("-inf"))
        peak = tl.max(value, axis=1)
        total = tl.log(tl.sum(tl.exp(value - peak[:, None, :]), axis=1)) + peak
    elif POOLING == "Max":
        total = tl.max(tl.where(named, value, float("-inf")), axis=1)
    else:
        total = tl.sum(tl.where(named, value, 0.0), axis=1)
        if POOLING == "Mean":
            total = total / own[:, None]
    target = scores + which[:, None].to(tl.int64) * rows + row[None, :]
    inside = (which < queries)[:, None] & (row < rows)[None, :]
    tl.store(target, tl.where(chosen[None, :], total, float("-inf")), mask=inside)
