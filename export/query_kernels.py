"""The GPU kernels that make a query ready, in Triton: codes of its vectors, and the numbers of its bounds.

Only `kernels.py` (ahead of time) and the tests (interpreted) import this module, as scan_kernels.py.
"""

import triton
import triton.language as tl


@triton.jit
def quantize(
    exact,  # float32 [words, WIDTH], the queries' vectors, with zeros behind them
    word_of,  # int32 [places], which vector has this place; -1 for none
    query,  # int8 or float16 [PLANES, places, WIDTH]
    word_scale,  # float64 [places]
    norms,  # float64 [words], the square of each vector's norm
    errors,  # float64 [words], the square of the norm of what its codes lose
    places,
    WIDTH: tl.constexpr,
    PLANES: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One vector in two planes, as quantize_queries of bounds.py codes it; or in half, so scaled that it fits."""
    place = tl.program_id(0)
    word = tl.load(word_of + place)
    named = word >= 0
    held = tl.where(named, WIDTH, 0)  # values that there are
    k = tl.arange(0, BLOCK_K)
    vector = exact + tl.maximum(word, 0).to(tl.int64) * WIDTH
    peak = tl.zeros([BLOCK_K], tl.float32)
    for step in range(0, WIDTH, BLOCK_K):
        peak = tl.maximum(peak, tl.abs(tl.load(vector + step + k, mask=step + k < held, other=0.0)))
    scale = tl.max(peak, axis=0).to(tl.float64)
    # 127 units of the first plane, which are 254 of the second each
    scale = scale / 32258.0 if PLANES == 2 else tl.where(scale > 0, scale, 1.0)
    norm = tl.zeros([BLOCK_K], tl.float64)
    error = tl.zeros([BLOCK_K], tl.float64)
    for step in range(0, WIDTH, BLOCK_K):
        inside = step + k < WIDTH
        value = tl.load(vector + step + k, mask=step + k < held, other=0.0).to(tl.float64)
        units = tl.where(scale > 0, value / scale, 0.0)
        target = query + place.to(tl.int64) * WIDTH + step + k
        if PLANES == 2:
            high = nearest(units / 254.0)
            low = nearest(units - 254.0 * high)
            lost = value - scale * (254.0 * high + low)
            norm += value * value
            error += lost * lost
            tl.store(target, high.to(tl.int8), mask=inside)
            tl.store(target + places.to(tl.int64) * WIDTH, low.to(tl.int8), mask=inside)
        else:
            tl.store(target, units.to(tl.float16), mask=inside)
    tl.store(word_scale + place, tl.where(named, scale, 0.0))
    if PLANES == 2:
        tl.store(norms + word, tl.sum(norm, axis=0), mask=named)
        tl.store(errors + word, tl.sum(error, axis=0), mask=named)


@triton.jit
def nearest(value):
    """The nearest integer from -127 to 127, of two the even one: what is added leaves no room for a fraction."""
    whole = value + 6755399441055744.0 - 6755399441055744.0
    return tl.minimum(tl.maximum(whole, -127.0), 127.0)


@triton.jit
def terms(
    exact,  # as of `quantize`
    norms,
    errors,
    word_starts,  # int32 [queries + 1]
    axes,  # float64, where the first plan's B lies [WIDTH, AXES], with zeros behind its rows and columns
    axes_places,  # int64 [num_plans], where each plan's begins beyond that, in units of UNIT elements; -1 for none
    block_of,  # int32 [AXES], the block of (1') that each column is in
    held,  # float64 [num_plans], f of (3')
    target,  # float64 [queries, num_plans, 6 + BLOCKS], what `radius` of list_kernels.py reads
    margins,  # float64 [queries], twice what a true score's own rounding can be, (2)
    num_plans,
    dim,
    slope,
    temperature,
    lost,
    more,
    largest,
    WIDTH: tl.constexpr,
    POOLING: tl.constexpr,
    AXES: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """How far a row's score can be from that of one query, in the numbers of bounds.py: for the rows of one plan.

    slope: the most that a score changes with one similarity's change, of Sum with that of all.
    lost: the most that float64 loses of a vector's coordinates along the axes, as a share of its norm.
    more: covers these few operations in float64, and those of `radius`.
    largest: no less than the norm of any row's vector.
    """
    which = (tl.program_id(0) // num_plans).to(tl.int64)
    plan = tl.program_id(0) % num_plans
    begin = tl.load(word_starts + which)
    end = tl.load(word_starts + which + 1)
    k = tl.arange(0, BLOCK_K)
    column = tl.arange(0, AXES)
    block = tl.load(block_of + column)
    share = tl.load(held + plan)
    begins = tl.load(axes_places + plan)
    axis_at = axes + begins * UNIT + column[None, :]
    depth = tl.where(begins >= 0, WIDTH, 0)
    slots: tl.constexpr = 8
    slot = tl.arange(0, slots)
    norm = tl.zeros([BLOCK_W], tl.float64)
    error = tl.zeros([BLOCK_W], tl.float64)
    rest = tl.zeros([BLOCK_W], tl.float64)
    along = tl.zeros([slots], tl.float64)
    for first in range(begin, end, BLOCK_W):
        word = first + tl.arange(0, BLOCK_W)
        named = word < end
        vector = exact + word[:, None].to(tl.int64) * WIDTH
        coordinates = tl.zeros([BLOCK_W, AXES], tl.float64)
        for step in range(0, depth, BLOCK_K):
            value = tl.load(vector + (step + k)[None, :], mask=named[:, None], other=0.0).to(tl.float64)
            axis = tl.load(axis_at + (step + k)[:, None] * AXES)
            coordinates = tl.dot(value, axis, coordinates, out_dtype=tl.float64)
        square = tl.load(norms + word, mask=named, other=0.0)
        energy = coordinates * coordinates
        norm = tl.maximum(norm, square)
        error = tl.maximum(error, tl.load(errors + word, mask=named, other=0.0))
        left = tl.maximum(square - share * tl.sum(energy, axis=1), 0.0)  # R(q)^2 of (3')
        rest = tl.maximum(rest, left + 4.0 * lost * square)
        for j in tl.static_range(BLOCKS):
            own = tl.sum(tl.where(block[None, :] == j, energy, 0.0), axis=1)
            along = tl.maximum(along, tl.where(slot == j, tl.max(own, axis=0), 0.0))
    size = tl.sqrt(tl.max(norm, axis=0))
    per_size = (dim + (end - begin) + 16).to(tl.float64) * 1.7763568394002505e-15  # 16 u (D + n + 16) of (2)
    if POOLING == "Sum":
        slope = slope * (end - begin)
    by_norm = slope * size * (per_size + 2.384185791015625e-07)  # and four roundings to float32
    if plan == 0:
        tl.store(margins + which, 2.0 * slope * per_size * (size * largest + temperature) * more)
    at = target + (which * num_plans + plan) * (6 + BLOCKS)
    tl.store(at, slope * per_size * temperature * more)
    tl.store(at + 1, slope * more)
    tl.store(at + 2, (by_norm + slope * tl.sqrt(tl.max(error, axis=0))) * more)
    tl.store(at + 3, by_norm * more)
    tl.store(at + 4, size * more)
    tl.store(at + 5, tl.sqrt(tl.max(rest, axis=0)) * more)
    tl.store(at + 6 + slot, (tl.sqrt(along) + lost * size) * more, mask=slot < BLOCKS)


@triton.jit
def project(
    exact,  # as of `quantize`
    columns,  # float64 [WIDTH, AXES], a plan's axes, with zeros behind its rows and columns
    coordinates,  # float64 [words, AXES]
    words,
    WIDTH: tl.constexpr,
    AXES: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Coordinates of BLOCK_W vectors along BLOCK_A axes: B'q."""
    tiles: tl.constexpr = AXES // BLOCK_A
    axis = tl.program_id(0) % tiles * BLOCK_A + tl.arange(0, BLOCK_A)
    word = tl.program_id(0) // tiles * BLOCK_W + tl.arange(0, BLOCK_W)
    named = word < words
    k = tl.arange(0, BLOCK_K)
    vector = exact + word[:, None].to(tl.int64) * WIDTH + k[None, :]
    axis_at = columns + k[:, None] * AXES + axis[None, :]
    found = tl.zeros([BLOCK_W, BLOCK_A], tl.float64)
    for step in range(0, WIDTH, BLOCK_K):
        value = tl.load(vector + step, mask=named[:, None], other=0.0).to(tl.float64)
        found = tl.dot(value, tl.load(axis_at + step * AXES), found, out_dtype=tl.float64)
    tl.store(coordinates + word[:, None].to(tl.int64) * AXES + axis[None, :], found, mask=named[:, None])


@triton.jit
def weigh(
    exact,  # as of `quantize`
    norms,
    coordinates,  # as of `project`
    mean,  # float64 [WIDTH], with zeros behind it
    block_of,  # int32 [AXES], the block of (3) that each axis is in
    norm_steps,  # float64 [NORMS], of the norm along each block, of R(q), and of the codes' own; then zeros
    coordinate_of,  # int32 [STRIDE], of each byte that is a code
    steps,  # float64 [STRIDE], that codes are counted in; zero where there is none
    pooled,  # float64 [words], how many vectors each one's query has
    digits,  # int8 [2, words, STRIDE]
    word_scale,  # float64 [words]
    word_offset,  # float64 [words]
    words,
    num_norms,
    dim,
    width,
    held,
    lost,
    size,
    middle,
    largest,
    temperature,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    AXES: tl.constexpr,
    NORMS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One vector as integers, by which `bound` multiplies coded vectors: `weigh_integers` of prefix_bounds.py.

    Args: of the plan and its level, as there.
        num_norms: J.
        dim: D.
        width: bytes of a coded vector.
        held: f of (3').
        lost: the most that float64 loses of a vector's coordinates, as a share of its norm.
        size: no less than the norm of coordinates as they are coded.
        middle: no less than the norm of the mean.
        largest: no less than the norm of any row's vector.
    """
    more: tl.constexpr = 1.000000001  # covers what float64 loses in a sum of squares and in a few operations after it
    most: tl.constexpr = 16319.0  # the largest integer of two digits of 7 bits
    unit: tl.constexpr = 1.1102230246251565e-16
    word = tl.program_id(0)
    k = tl.arange(0, BLOCK_K)
    dot = tl.zeros([BLOCK_K], tl.float64)
    for step in range(0, WIDTH, BLOCK_K):
        inside = step + k < WIDTH
        value = tl.load(exact + word.to(tl.int64) * WIDTH + step + k, mask=inside, other=0.0).to(tl.float64)
        dot += value * tl.load(mean + step + k, mask=inside, other=0.0)
    square = tl.load(norms + word)
    norm = tl.sqrt(square) * more
    off = lost * norm
    axis = tl.arange(0, AXES)
    own = coordinates + word.to(tl.int64) * AXES
    energy = tl.load(own + axis)
    energy = energy * energy
    block = tl.load(block_of + axis)
    j = tl.arange(0, NORMS)
    along = tl.sqrt(tl.sum(tl.where(block[:, None] == j[None, :], energy[:, None], 0.0), axis=0)) * more + off
    left = tl.maximum(square - held * tl.sum(energy, axis=0), 0.0) + 2.0 * lost * square
    along = tl.where(j == num_norms - 2, tl.sqrt(left) * more, along)
    along = along * tl.load(norm_steps + j) * more
    along = tl.where(j < num_norms - 1, along, 0.0)
    byte = tl.arange(0, STRIDE)
    step = tl.load(steps + byte)
    product = held * tl.load(own + tl.load(coordinate_of + byte)) * step
    peak = tl.maximum(tl.max(along, axis=0), tl.max(tl.abs(product), axis=0))
    scale = tl.where(peak > 0, peak / most * more, 1.0)
    code = product / scale + 6755399441055744.0 - 6755399441055744.0  # the nearest integer
    rounded = product - code * scale
    last = tl.sqrt(tl.sum(rounded * rounded, axis=0)) * more
    along = tl.where(j == num_norms - 1, last * tl.load(norm_steps + j), along)
    code = tl.minimum(tl.maximum(code, -most), most)
    above = tl.minimum(tl.ceil(along / scale * more), most)
    total = 255.0 * scale * (tl.sum(above, axis=0) + tl.sum(tl.abs(code), axis=0)) * more
    allowed = 4.0 * (dim + width).to(tl.float64) * unit * (norm * middle * more + total)
    pooling = 16.0 * unit * (dim + tl.load(pooled + word) + 16.0) * (norm * largest + temperature)
    offset = tl.sum(dot, axis=0) + off * size + 128.0 * scale * tl.sum(above, axis=0) + allowed + pooling
    tl.store(word_scale + word, scale)
    tl.store(word_offset + word, offset)
    integer = code.to(tl.int32)
    target = digits + word.to(tl.int64) * STRIDE
    second = words.to(tl.int64) * STRIDE
    high = (integer + 64) >> 7
    tl.store(target + byte, high.to(tl.int8), mask=byte >= num_norms)
    tl.store(target + second + byte, (integer - high * 128).to(tl.int8), mask=byte >= num_norms)
    integer = above.to(tl.int32)
    high = (integer + 64) >> 7
    tl.store(target + j, high.to(tl.int8), mask=j < num_norms)
    tl.store(target + second + j, (integer - high * 128).to(tl.int8), mask=j < num_norms)
