"""The bounds hold for every pair, the arithmetic's rounding included, and are as tight as stated."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.gallery.kernels.layout import PLANE
from chan_rt.runtime.gallery.proof.bounds import (
    Reach,
    block_norms,
    float32_similarity_error,
    gallery_norms,
    int8_radius,
    kth_largest,
    largest_norm,
    no_axes,
    quantize_query,
)
from chan_rt.runtime.gallery.proof.pooling import pool, pool_groups, score_change
from chan_rt.runtime.gallery.proof.prefix import fit_axes
from chan_rt.runtime.gallery.proof.quantize import quantize
from chan_rt.runtime.gallery.proof.rows import errors_along

POOLINGS = ("Max", "Mean", "Sum", "LSE", "Softmax")
KINDS = ("unit", "raw", "tiny", "denormal", "huge", "mixed", "sparse", "zero", "equal", "ulp")


def adversarial(rng: np.random.Generator, kind: str, count: int, dim: int) -> np.ndarray:
    """Vectors [count, dim] of one kind of trouble."""
    x = rng.standard_normal((count, dim)).astype(np.float32)
    match kind:
        case "unit":
            return x / np.linalg.norm(x, axis=1, keepdims=True)
        case "tiny":
            return x * np.float32(1e-30)
        case "denormal":
            return x * np.float32(1e-42)
        case "huge":
            return np.clip(x * np.float32(1e14), -1e15, 1e15)
        case "mixed":
            return x * np.float32(10.0) ** rng.integers(-8, 8, (count, 1)).astype(np.float32)
        case "sparse":
            return np.where(rng.random(x.shape) < 2 / dim, x, 0).astype(np.float32)
        case "zero":
            return x * 0
        case "equal":
            return np.sign(x) * np.float32(1 / 3)
        case "ulp":  # halves of a step, where rounding is worst, and their neighbours
            grid = (rng.integers(-126, 126, x.shape) + 0.5).astype(np.float32)
            grid[:, 0] = 127
            return np.nextafter(grid, rng.choice(np.float32([-1e9, 1e9]), x.shape))
    return x


def random_axes(rng: np.random.Generator, vectors: np.ndarray, count: int) -> np.ndarray:
    """Axes for (1') and (1''), [dim, at most `count`]: none, fitted to vectors, or random and not orthogonal."""
    dim = vectors.shape[1]
    match rng.integers(3):
        case 0:
            return no_axes(dim)
        case 1:
            return fit_axes(vectors, None).columns
    axes = rng.standard_normal((dim, min(dim, count))).astype(np.float32)
    return axes / (np.float32(1 + 1e-6) * np.linalg.norm(axes, axis=0))


def violations(rng: np.random.Generator, kinds: tuple[str, str], vectors: int, words: int, dim: int) -> tuple[int, int]:
    """(pairs whose similarity leaves its interval, pairs checked), for groups of random length."""
    x = adversarial(rng, kinds[0], vectors, dim)
    q = adversarial(rng, kinds[1], words, dim)
    cuts = np.sort(rng.choice(np.arange(1, vectors), vectors // 7, replace=False))
    starts = np.r_[0, cuts, vectors].astype(np.int64)
    planes = int(rng.integers(1, 3))
    rows, query = quantize(x, starts), quantize_query(q, per_vector=bool(rng.integers(2)), planes=planes)
    group = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    high, *low = (rows.codes.astype(np.float64) @ plane.astype(np.float64).T for plane in query.planes)
    products = high.astype(np.float32)
    if low:
        products = products * np.float32(PLANE) + low[0].astype(np.float32)  # as the kernels round
    estimate = (products * query.scale) * rows.scale.astype(np.float64)[group, None]
    error, norm = rows.error.astype(np.float64)[group], rows.norm.astype(np.float64)[group]
    maximum = AlignmentConfig("VHA", "Max")  # Max pooling of one similarity leaves it as it is
    axes, basis = random_axes(rng, x, 64), random_axes(rng, q, 128)
    restored = rows.codes * rows.scale.astype(np.float64)[group, None]
    lost = x.astype(np.float64) - restored
    blocks = np.nextafter(block_norms(lost, axes).astype(np.float32), np.float32(np.inf))
    norms = np.nextafter(gallery_norms(restored, basis).astype(np.float32), np.float32(np.inf))
    reach = Reach([query], axes, basis)
    change = reach.change(rows.error[group], rows.norm[group], blocks, norms)[0]
    moved = np.abs(lost @ q.astype(np.float64).T + restored @ query.lost.T)
    wrong_change = moved > (change * (1 + 1e-12) + 1e-12 * query.norm * (norm + error))[:, None]
    radius = int8_radius(change, error.astype(np.float32), norm.astype(np.float32), query, 1, 0.0, maximum)
    exact = x.astype(np.float64) @ q.astype(np.float64).T
    wrong = np.abs(exact - estimate) > radius[:, None]
    single = x @ q.T
    slack = float32_similarity_error(dim, dim, query.norm, norm + error)
    wrong32 = np.abs(single.astype(np.float64) - exact) > slack[:, None]
    return int(wrong.sum() + wrong32.sum() + wrong_change.sum()), wrong.size


def test_no_similarity_leaves_its_interval_in_ten_million_pairs() -> None:
    rng = np.random.default_rng(6)
    checked = 0
    while checked < 10_000_000:
        for kind in KINDS:
            dim = int(rng.choice([1, 2, 16, 70, 256]))
            found, pairs = violations(rng, (kind, str(rng.choice(KINDS))), 1500, 220, dim)
            assert found == 0, (kind, dim)
            checked += pairs


@pytest.mark.nightly
def test_no_similarity_leaves_its_interval_in_a_billion_pairs() -> None:
    rng = np.random.default_rng(60)
    checked = 0
    while checked < 1_000_000_000:
        for kind in KINDS:
            dim = int(rng.choice([1, 2, 16, 70, 256, 1024]))
            found, pairs = violations(rng, (kind, str(rng.choice(KINDS))), 4000, 1000, dim)
            assert found == 0, (kind, dim)
            checked += pairs


def test_the_similarity_bound_is_nearly_attained() -> None:
    """A gallery vector whose rounding error points along the query: the interval cannot be made much smaller."""
    query = np.array([[1.0, 1.0, 1.0, 1.0]], np.float32) / 2
    x = np.array([[127, 10.49, 20.49, 30.49]], np.float32)
    rows = quantize(x, np.array([0, 1]))
    estimate = float((rows.codes[0] * float(rows.scale[0])) @ query[0].astype(np.float64))
    exact = float(x[0].astype(np.float64) @ query[0].astype(np.float64))
    assert 0.85 < abs(exact - estimate) / (float(rows.error[0]) * largest_norm(query)) <= 1


@pytest.mark.parametrize("pooling", POOLINGS)
@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 30),
    size=st.sampled_from([1e-6, 0.01, 0.3, 3.0]),
    temperature=st.sampled_from([0.02, 0.1, 1.0]),
)
def test_scores_move_no_further_than_stated(pooling, seed, count, size, temperature) -> None:
    rng = np.random.default_rng(seed)
    alignment = AlignmentConfig("VHA", pooling, 0.1, temperature)
    values = rng.standard_normal((50, count))
    moved = values + size * rng.choice([rng.uniform(-1, 1, (50, count)), rng.choice([-1.0, 1.0], (50, count))])
    spread = values.max(axis=1) - values.min(axis=1)
    most = score_change(np.full(50, size), count, spread, alignment)
    assert (np.abs(pool(moved, alignment) - pool(values, alignment)) <= most * (1 + 1e-9) + 1e-12).all()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_score_changes_are_attained(pooling: str) -> None:
    alignment = AlignmentConfig("VHA", pooling, 0.1, 0.1)
    values, size = np.array([0.3, 0.5, -0.1]), 0.02
    most = float(score_change(np.array(size), 3, 0.6, alignment))
    shift = float(pool(values + size, alignment) - pool(values, alignment))
    if pooling == "Softmax":  # two weights in the ratio sqrt(r) reach the total variation in the proof
        ratio = np.exp(size / 0.1)
        values = np.array([0.0, -0.1 * np.log(ratio)])  # p = (sqrt r, 1) / (sqrt r + 1)
        moved = values + np.array([-size, size])
        p, moved_p = (np.exp(v / 0.1) / np.exp(v / 0.1).sum() for v in (values, moved))
        assert abs(moved_p - p)[0] == pytest.approx(np.tanh(size / 0.2), rel=1e-9)
    else:
        assert shift == pytest.approx(most, rel=1e-9)


def test_grouped_pooling_is_pooling_of_each_group() -> None:
    rng = np.random.default_rng(0)
    for lengths in ([3, 1, 7, 3], [4, 4, 4]):
        starts = np.cumsum([0, *lengths]).astype(np.int64)
        values = rng.standard_normal((starts[-1], 5))
        for pooling in POOLINGS:
            alignment = AlignmentConfig("VHA", pooling)
            pooled, spread = pool_groups(values, starts, alignment)
            for i, (a, b) in enumerate(itertools.pairwise(starts)):
                np.testing.assert_allclose(pooled[i], pool(values[a:b].T, alignment), rtol=1e-13)
                expected = np.ptp(values[a:b], axis=0) if pooling == "Softmax" else np.zeros(5)
                np.testing.assert_array_equal(spread[i], expected)


def test_quantization_errors_are_upper_bounds_and_close() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((50, 300)).astype(np.float32)
    starts = np.array([0, 1, 20, 50])
    rows = quantize(x, starts)
    restored = rows.codes * np.repeat(rows.scale, np.diff(starts)).astype(np.float64)[:, None]
    error = np.linalg.norm(x - restored, axis=1)
    norm = np.linalg.norm(restored, axis=1)
    for i, (a, b) in enumerate(itertools.pairwise(starts)):
        assert error[a:b].max() <= rows.error[i] <= error[a:b].max() * (1 + 1e-6)
        assert norm[a:b].max() <= rows.norm[i] <= norm[a:b].max() * (1 + 1e-6)
        assert np.abs(rows.codes[a:b]).max() == 127


@pytest.mark.parametrize(("k", "expected"), [(1, 3.0), (2, 3.0), (4, -1.0), (5, -np.inf)])
def test_kth_largest(k: int, expected: float) -> None:
    assert kth_largest(np.array([3.0, -1.0, 2.0, 3.0]), k) == expected


def test_errors_along_axes_are_rounded_up() -> None:
    """Against long double, so that an upper bound that was rounded to the nearest float32 shows."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((300, 48)).astype(np.float32)
    starts, axes = np.arange(301), fit_axes(x, None).columns
    rows = quantize(x, starts)
    restored = rows.codes * rows.scale.astype(np.longdouble)[:, None]
    coordinates = np.square((x.astype(np.longdouble) - restored) @ axes.astype(np.longdouble))
    exact = np.sqrt(np.add.reduceat(coordinates, [0, 1, 4, 16], axis=1))
    found = errors_along(axes, x, rows.codes, rows.scale, starts)
    assert (found >= exact).all()
    assert (found <= exact * (1 + 1e-6)).all()


def test_norms_along_axes_hold_what_cancels_in_float64() -> None:
    """1 - 1 + 2^-60 is 2^-60, and 0 in some orders of summation."""
    vectors = np.array(list(itertools.permutations([2.0**-60, 1.0, -1.0, 0.0])))
    axes = np.full((4, 1), 0.5, np.float32)
    for columns in range(4):  # whatever order the library sums in
        found = block_norms(np.roll(vectors, columns, axis=1), axes)
        assert (found >= 2.0**-61).all()
