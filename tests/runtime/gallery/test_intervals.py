"""Intervals hold the true scores where only the arithmetic's own rounding is left: real kernels, worst galleries.

On vectors that lie on the int8 grid the codes lose nothing, so what is left of an interval is what float32 and float64
may round; any term that bounds.py forgets shows here, for each kernel.
"""

from fractions import Fraction

import numpy as np
import pytest

from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.gallery.estimate import CpuEstimator
from chan_rt.runtime.gallery.kernels.base import Kernel
from chan_rt.runtime.gallery.kernels.choose import open_kernel
from chan_rt.runtime.gallery.kernels.pool import Pool
from chan_rt.runtime.gallery.proof.bounds import float32_similarity_error, largest_norm, rounding
from chan_rt.runtime.gallery.proof.certify import Certifier
from chan_rt.runtime.gallery.proof.gallery_rows import GalleryRows
from chan_rt.runtime.gallery.proof.pooling import pool, score_change
from chan_rt.runtime.gallery.proof.prefix import SearchPlan, fit_axes
from chan_rt.runtime.gallery.proof.rows import ArrayPart, array_part
from chan_rt.runtime.gallery.proof.true_score import inner_products, true_row

POOLINGS = ("Max", "Mean", "Sum", "LSE", "Softmax")
POOL = Pool(1)
ROWS, VECTORS, WORDS = 40, 3, 7


def part_of(rows: list[np.ndarray], **options: object) -> ArrayPart:
    """One part of some rows."""
    return array_part(np.concatenate(rows), np.cumsum([0] + [len(row) for row in rows]).astype(np.int64), **options)


def on_the_grid(rng: np.random.Generator, count: int, dim: int, levels: int, size: float) -> np.ndarray:
    """Vectors of integers up to `levels`, which one of each vector reaches, times a power of two."""
    vectors = rng.integers(-levels, levels + 1, (count, dim))
    vectors[::2] = np.abs(vectors[::2])  # large sums, which are rounded the most
    vectors[:, 0] = levels
    return (vectors * size).astype(np.float32)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("coding", ["VHA", "THA"])
@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("size", [2.0**-14, 2.0**-30, 2.0**-40, 2.0**10])
def test_scores_of_what_int8_holds_stay_within_their_rounding(
    kernel: Kernel, pooling: str, coding: str, planes: int, size: float
) -> None:
    rng = np.random.default_rng(5)
    alignment = AlignmentConfig(coding, pooling)
    for dim in (5, 512, 4096):
        vectors = on_the_grid(rng, ROWS * VECTORS, dim, 127, size)
        query = on_the_grid(rng, WORDS, dim, 127 if planes == 1 else 127 * 254, size)
        part = array_part(vectors, np.arange(ROWS + 1, dtype=np.int64) * VECTORS)
        assert part.error.max() < 1e-40, "the codes lose nothing"
        gallery = GalleryRows([part], "images", alignment)
        found = CpuEstimator(gallery, kernel, POOL, planes).intervals([query], 1, np.arange(ROWS))(0)
        truth = np.array([true_row(part.fine(i), query, "images", alignment).score for i in range(ROWS)])
        away = np.abs(found.scores - truth)
        assert (away <= found.radius).all()
        if planes == 2 and size == 2.0**-14 and dim == 4096 and pooling == "Max":
            assert away.max() > 0, "this gallery shows the rounding"


def test_float32_products_come_close_to_their_bound(kernel: Kernel) -> None:
    """A large product for each lane, then so small ones that each is lost: all roundings go the same way."""
    dim = 4096
    vector = np.full((1, dim), 2.0**-12, np.float32)
    vector[0, :16] = 1
    exact = float((vector.astype(np.float64) ** 2).sum())
    found = float(kernel.products([vector], vector)[0, 0])
    bound = float32_similarity_error(dim, kernel.roundings(dim), largest_norm(vector), np.array([largest_norm(vector)]))
    assert abs(found - exact) <= bound[0]


def test_float32_products_that_underflow_stay_within_their_bound(kernel: Kernel) -> None:
    """Denormal products, which some CPUs flush to zero: what is lost is no share of anything."""
    for size in (2.0**-70, 2.0**-75):
        vector = np.full((1, 640), size, np.float32)
        exact = 640 * size * size
        norm = largest_norm(vector)
        bound = float32_similarity_error(640, kernel.roundings(640), norm, np.array([norm]))
        assert abs(float(kernel.products([vector], vector)[0, 0]) - exact) <= bound[0]
        assert bound[0] > 640 * size * size, "even where every product is flushed to zero"


def test_float64s_own_rounding_is_part_of_the_float32_bound() -> None:
    """A kernel without any rounding of its own would still be compared with float64, which rounds."""
    dim = 4096
    vector = np.full((1, dim), 2.0**-27)
    vector[0, 0] = 1
    exact = 1 + (dim - 1) * Fraction(1, 2**54)
    away = abs(Fraction(float(inner_products(vector, vector)[0])) - exact)
    assert away > 0
    assert away <= Fraction(float(float32_similarity_error(dim, 0, 1.0, np.array([1.0]))[0]))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("size", [1e-17, 1e-12, 1.0])
def test_pooling_in_float64_stays_within_its_rounding(pooling: str, temperature: float, size: float) -> None:
    """Against pooling in long double, for values around and far below the temperature."""
    rng = np.random.default_rng(7)
    alignment = AlignmentConfig("VHA", pooling, 0.1, temperature)
    values = size * rng.uniform(-1, 1, (200, 333))
    wide = values.astype(np.longdouble)
    weights = np.exp((wide - wide.max(axis=1, keepdims=True)) / np.longdouble(temperature))
    exact = {
        "Max": wide.max(axis=1),
        "Mean": wide.mean(axis=1),
        "Sum": wide.sum(axis=1),
        "LSE": np.log(weights.sum(axis=1)) + wide.max(axis=1) / np.longdouble(temperature),
        "Softmax": (weights * wide).sum(axis=1) / weights.sum(axis=1),
    }[pooling]
    change = rounding(np.full(200, size), 1, 333, alignment)
    most = score_change(change, 333, np.ptp(values, axis=1), alignment)
    for found in (pool(values, alignment), pool(np.asfortranarray(values), alignment)):
        assert (np.abs(found - exact) <= most).all()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("coding", ["VHA", "THA"])
@pytest.mark.parametrize("kind", ["images", "captions"])
@pytest.mark.parametrize("planes", [1, 2])
def test_true_scores_lie_in_the_intervals(pooling: str, coding: str, kind: str, planes: int) -> None:
    """Parts prepared, prepared for other rows, and not prepared."""
    rng = np.random.default_rng(8)
    alignment = AlignmentConfig(coding, pooling, 0.1, 0.02)
    rows = [rng.standard_normal((int(rng.integers(1, 9)), 48)).astype(np.float32) / 7 for _ in range(300)]
    query = rng.standard_normal((5, 48)).astype(np.float32) / 7
    plans = [SearchPlan(fit_axes(np.concatenate(some), query), None, None, planes) for some in (rows, rows[:5])]
    parts = [part_of(rows[100 * i : 100 * i + 100], plan=plan) for i, plan in enumerate([*plans, None])]
    estimator = CpuEstimator(GalleryRows(parts, kind, alignment), open_kernel("numpy"), POOL, planes)
    truth = np.array([true_row(row, query, kind, alignment).score for row in rows])
    allowed = np.flatnonzero(rng.random(300) < 0.9)
    found = estimator.intervals([query], 3, allowed)(0)
    assert (np.abs(found.scores - truth[found.rows]) <= found.radius).all()
    assert found.rows.tolist() == allowed.tolist()
    assert np.median(found.radius) < np.ptp(truth), "they say something"


def test_norms_of_the_fine_copy_are_bounded() -> None:
    """Vectors whose codes are much shorter than they are: all but one coordinate round to zero."""
    vectors = np.full((4, 1024), 0.49, np.float32)
    vectors[:, 0] = 127
    gallery = GalleryRows([part_of([vectors[:2], vectors[2:]])], "images", AlignmentConfig())
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    assert (gallery.norm < norms[:2]).all()
    assert (gallery.fine_norm(np.arange(2)) >= norms[:2]).all()


def test_the_spread_widens_intervals_of_softmax_pooling() -> None:
    """One similarity is rounded down and a hundred lower ones up: weights move by more than the similarities do."""
    alignment = AlignmentConfig("THA", "Softmax", 0.1, 0.1)
    row = np.array([[-1.27], [0.5649], *[[0.0951]] * 100], np.float32)  # codes -127, 56 and 10
    part = part_of([row])
    estimator = CpuEstimator(GalleryRows([part], "images", alignment), open_kernel("numpy"), POOL)
    query = np.ones((1, 1), np.float32)
    truth = true_row(row, query, "images", alignment).score
    change = float(part.error[0]) * largest_norm(query)
    found = estimator.intervals([query], 1, np.arange(1))(0)
    assert 1.5 * change < abs(found.scores[0] - truth) <= found.radius[0]


def test_intervals_of_rescored_rows_hold_what_float64_rounds(kernel: Kernel) -> None:
    """Similarities so far below the temperature that float32's part of the interval is less than float64's rounding."""
    rng, count = np.random.default_rng(0), 5000
    rows = list((rng.standard_normal((count, 1, 16)) * 2.0**-20).astype(np.float32))
    query = (rng.standard_normal((23, 16)) * 2.0**-20).astype(np.float32)
    alignment = AlignmentConfig("VHA", "LSE", 0.1, 0.1)
    certifier = Certifier(GalleryRows([part_of(rows)], "images", alignment), kernel, POOL)
    starts = np.arange(count + 1)
    products = kernel.products(rows, query)
    scores, radius = certifier._float32_scores(products, starts, starts[:-1], query, largest_norm(query))
    truth = np.array([true_row(row, query, "images", alignment).score for row in rows])
    assert (np.abs(scores - truth) <= radius).all()
    assert np.abs(scores - truth).max() > 0, "these rows show the rounding"
