"""The GPU kernels that make a list of rows from scores, in Triton: how far scores can be off, thresholds, and the rows.

Only `kernels.py` (ahead of time) and the tests (interpreted) import this module, as scan_kernels.py.
"""

import triton
import triton.language as tl

from .scan_kernels import pool_all, pool_more


@triton.jit
def radius(terms, error, norm, blocks, plans, which, row, valid, rows, num_plans, BLOCKS: tl.constexpr):
    """How far rows' scores can be off for a query: by the smaller of (1) and (1') of bounds.py, as `terms` has them."""
    plan = tl.load(plans + row, mask=valid, other=0)
    at = terms + (which * num_plans + plan) * (6 + BLOCKS)
    row_error = tl.load(error + row, mask=valid, other=0.0).to(tl.float64)
    row_norm = tl.load(norm + row, mask=valid, other=0.0).to(tl.float64)
    narrow = tl.load(at + 5) * row_error
    for j in tl.static_range(BLOCKS):
        block = tl.load(blocks + j * rows.to(tl.int64) + row, mask=valid, other=0.0).to(tl.float64)
        narrow += tl.load(at + 6 + j) * block
    change = tl.minimum(tl.load(at + 4) * row_error, narrow)
    return tl.load(at) + tl.load(at + 1) * change + tl.load(at + 2) * row_norm + tl.load(at + 3) * row_error


@triton.jit
def best_rows(
    scores,  # float64 [queries, rows]
    error,  # as of `shortlist`
    norm,
    blocks,
    plans,
    terms,
    maxima,  # float64 [queries, groups]
    owners,  # int32 [queries, groups]
    rows,
    size,
    groups,
    queries,
    num_plans,
    GROUPS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """The largest lower bound of each group of `size` rows, and the row that has it.

    Upper bounds pass through here, too, for rows to look at first. Infinite ones tell nothing, so they come last.
    """
    block = tl.program_id(0) // queries
    which = (tl.program_id(0) % queries).to(tl.int64)
    group = block * GROUPS + tl.arange(0, GROUPS)
    largest = tl.full([GROUPS], float("-inf"), tl.float64)
    owner = group * size
    for first in range(0, size, AT_ONCE):
        place = first + tl.arange(0, AT_ONCE)
        row = group[:, None] * size + place[None, :]
        valid = (place < size)[None, :] & (row < rows)
        lower = tl.load(scores + which * rows + row, mask=valid, other=float("-inf"))
        lower -= radius(terms, error, norm, blocks, plans, which, row, valid, rows, num_plans, BLOCKS)
        lower = tl.where(lower == float("inf"), float("-inf"), lower)
        most, at = tl.max(lower, axis=1, return_indices=True)
        owner = tl.where(most > largest, group * size + first + at, owner)
        largest = tl.maximum(largest, most)
    tl.store(maxima + which * groups + group, largest, mask=group < groups)
    tl.store(owners + which * groups + group, owner, mask=group < groups)


@triton.jit
def sortable(value):
    """An int64 for each float64, in the same order and equal for 0 and -0: GPUs for games compare float64 slowly."""
    bits = (value + 0.0).to(tl.int64, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFFFFFFFFFF, bits)


@triton.jit
def kth_best(
    maxima,  # float64 [queries, groups]
    owners,  # int32 [queries, groups]
    thresholds,  # float64 [queries]; raised to the k-th largest of the maxima
    found,  # int32 [queries], zero; becomes how many rows are picked
    picked,  # int32 [queries, picks], the rows of the largest maxima, best first
    groups,
    k,
    picks,
    queries,
    GROUPS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Sort groups by their maxima: each group counts those that are before it, the earlier ones of equal ones."""
    block = tl.program_id(0) // queries
    which = (tl.program_id(0) % queries).to(tl.int64)
    own = maxima + which * groups
    group = block * GROUPS + tl.arange(0, GROUPS)
    valid = group < groups
    value = tl.load(own + group, mask=valid, other=float("-inf"))
    before = tl.zeros([GROUPS], tl.int32)
    key = sortable(value)
    for first in range(0, groups, AT_ONCE):
        other = first + tl.arange(0, AT_ONCE)
        its = sortable(tl.load(own + other, mask=other < groups, other=float("-inf")))
        ahead = its[None, :] > key[:, None] - (other[None, :] < group[:, None]).to(tl.int64)
        before += tl.sum(ahead.to(tl.int32), axis=1)
    threshold = thresholds + which + tl.zeros([GROUPS], tl.int32)
    kth = valid & (before == k - 1)
    tl.store(threshold, tl.maximum(value, tl.load(threshold, mask=kth, other=0.0)), mask=kth)
    keep = valid & (before < picks) & (value > float("-inf"))
    tl.atomic_add(found + which, tl.sum(keep.to(tl.int32), axis=0))
    owner = tl.load(owners + which * groups + group, mask=keep, other=0)
    tl.store(picked + which * picks + before, owner, mask=keep)


@triton.jit
def shortlist(
    scores,  # float64 [queries, rows]
    error,  # float32 [rows]
    norm,  # float32 [rows]
    blocks,  # float32 [BLOCKS, rows]
    plans,  # int32 [rows]
    terms,  # float64 [queries, num_plans, 6 + BLOCKS]
    thresholds,  # float64 [queries]
    found,  # int32 [queries], how many so far; counts on past the capacity
    listed_rows,  # int32 [queries, capacity], in no order
    listed_scores,  # float64 [queries, capacity]
    listed_radii,  # float64 [queries, capacity], how far these can be off
    rows,
    capacity,
    queries,
    num_plans,
    SIZE: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Append the rows whose upper bound reaches the threshold, with their scores and how far these can be off."""
    block = tl.program_id(0) // queries
    which = (tl.program_id(0) % queries).to(tl.int64)
    row = block * SIZE + tl.arange(0, SIZE)
    valid = row < rows
    score = tl.load(scores + which * rows + row, mask=valid, other=float("-inf"))
    off = radius(terms, error, norm, blocks, plans, which, row, valid, rows, num_plans, BLOCKS)
    keep = (score + off >= tl.load(thresholds + which)) & (score > float("-inf"))
    counted = keep.to(tl.int32)
    place = tl.atomic_add(found + which, tl.sum(counted, axis=0)) + tl.cumsum(counted, axis=0) - counted
    keep = keep & (place < capacity)
    tl.store(listed_rows + which * capacity + place, row, mask=keep)
    tl.store(listed_scores + which * capacity + place, score, mask=keep)
    tl.store(listed_radii + which * capacity + place, off, mask=keep)


@triton.jit
def true_scores(
    maxima,  # as of `reach`, up to `temperature`
    found,
    word_starts,
    which,
    picks,
    stride,
    temperature,
    POOLING: tl.constexpr,
    PICKS: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """The scores of one query's rows that were picked, [PICKS]; -inf of those that are beyond."""
    pick = tl.arange(0, PICKS)
    valid = pick < tl.minimum(tl.load(found + which), picks)
    words = tl.load(word_starts + which + 1) - tl.load(word_starts + which)
    pair = which * picks + pick
    peak = tl.full([PICKS], float("-inf"), tl.float64)
    total = tl.full([PICKS], 0.0, tl.float64)
    for begin in range(0, words, BLOCK_W):
        word = begin + tl.arange(0, BLOCK_W)
        valid_word = word < words
        at = maxima + pair[:, None] * stride + word[None, :]
        value = tl.load(at, mask=valid[:, None] & valid_word[None, :], other=0.0)
        peak, total = pool_more(peak, total, value, valid_word, temperature, POOLING)
    return tl.where(valid, pool_all(peak, total, words, POOLING), float("-inf"))


@triton.jit
def kth_largest(value, k, COUNT: tl.constexpr):
    """The k-th largest of some values [COUNT]; -inf where there are fewer."""
    place = tl.arange(0, COUNT)
    # Each one counts those that are before it, the earlier ones of equal ones.
    ahead = (value[None, :] > value[:, None]) | ((value[None, :] == value[:, None]) & (place[None, :] < place[:, None]))
    return tl.max(tl.where(tl.sum(ahead.to(tl.int32), axis=1) == k - 1, value, float("-inf")), axis=0)


@triton.jit
def reach(
    maxima,  # float64 [queries, picks, stride], of each word the largest true similarity over a row's vectors
    found,  # int32 [queries], how many rows were picked for each
    word_starts,  # int32 [queries + 1]
    margins,  # float64 [queries], how far pooling can be off
    thresholds,  # float64 [queries]; raised to the k-th largest true score of the rows that were picked
    k,
    picks,
    stride,
    temperature,
    POOLING: tl.constexpr,
    PICKS: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Pool the true similarities of PICKS rows of one query at most, and find the k-th largest score."""
    which = tl.program_id(0).to(tl.int64)
    score = true_scores(maxima, found, word_starts, which, picks, stride, temperature, POOLING, PICKS, BLOCK_W)
    best = kth_largest(score, k, PICKS) - tl.load(margins + which)
    tl.store(thresholds + which, tl.maximum(best, tl.load(thresholds + which)))


@triton.jit
def select(
    maxima,  # float64 [queries, picks, stride], as of `reach`, of the first rows on each list
    winners,  # int32 [queries, picks, stride]
    decided,  # int32 [queries, picks], the rows
    found,  # int32 [queries], how long each list is
    word_starts,  # int32 [queries + 1]
    margins,  # float64 [queries]
    thresholds,  # float64 [queries], true scores that rows must reach
    kept_maxima,  # float64 [queries, room, stride]
    kept_winners,  # int32 [queries, room, stride]
    kept_rows,  # int32 [queries, room]
    kept,  # int32 [queries], how many rows are left; those beyond the room are counted only
    k,
    picks,
    room,
    stride,
    temperature,
    POOLING: tl.constexpr,
    PICKS: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Copy what could be among the best k of the PICKS rows of one query at most."""
    which = tl.program_id(0).to(tl.int64)
    score = true_scores(maxima, found, word_starts, which, picks, stride, temperature, POOLING, PICKS, BLOCK_W)
    margin = tl.load(margins + which)
    threshold = tl.maximum(tl.load(thresholds + which), kth_largest(score, k, PICKS) - margin)
    keep = (score > float("-inf")) & (score + margin >= threshold)
    counted = keep.to(tl.int32)
    place = tl.cumsum(counted, axis=0) - counted
    tl.store(kept + which, tl.sum(counted, axis=0))
    keep = keep & (place < room)
    source, target = which * picks + tl.arange(0, PICKS), which * room + place
    tl.store(kept_rows + target, tl.load(decided + source, mask=keep), mask=keep)
    words = tl.load(word_starts + which + 1) - tl.load(word_starts + which)
    for begin in range(0, words, BLOCK_W):
        word = begin + tl.arange(0, BLOCK_W)
        both = keep[:, None] & (word < words)[None, :]
        from_at, to_at = source[:, None] * stride + word[None, :], target[:, None] * stride + word[None, :]
        tl.store(kept_maxima + to_at, tl.load(maxima + from_at, mask=both), mask=both)
        tl.store(kept_winners + to_at, tl.load(winners + from_at, mask=both), mask=both)
