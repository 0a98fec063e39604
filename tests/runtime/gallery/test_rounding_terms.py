"""What arithmetic loses is allowed for, term by term: here are vectors whose bounds are too low without the term.

A row is asked for with its own score as the threshold, so a bound that is a last place too low loses it. The
coordinates of a flat pair (see `flat`) round down in float32 as far as they can; other rows are coded without loss, so
that nothing but the term in question separates their bounds from their scores.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.gallery.compiled import CompiledSearch, CoreThreads, open_core
from chan_rt.runtime.gallery.proof.gallery_rows import GalleryRows
from chan_rt.runtime.gallery.proof.prefix import Axes, PrefixLevel, SearchPlan, deviation_of, rotate
from chan_rt.runtime.gallery.proof.rows import array_part

core = open_core()
needs_core = pytest.mark.skipif(core is None, reason="the search core is not compiled here")
each_kind = pytest.mark.parametrize("kind", ["images", "captions"])  # with VHA: pools the query's vectors, or the row's
THREADS = CoreThreads(1)
UNIT32 = 2.0**-24
FLAT = 4096


def lost_rows(
    plan: SearchPlan | None,
    rows: np.ndarray,
    queries: list[np.ndarray],
    pooling: str,
    kind: str,
    temperature: float = 1.0,
) -> int:
    """How many rows [N, D], of one vector each, some bound of theirs excludes although their score is the threshold."""
    part = array_part(rows, np.arange(len(rows) + 1), "float32", plan)
    gallery = GalleryRows([part], kind, AlignmentConfig("VHA", pooling, 0.1, temperature))
    lost = set()
    for name in core.features():
        search = CompiledSearch(gallery, plan, THREADS, name)
        missed = 0
        for query in queries:
            scores = search.scores([query] * len(rows), np.arange(len(rows)))
            missed += len(rows) - int(search.above([query], np.array([np.inf]), scores)[0][0])
        lost.add(missed)
    assert len(lost) == 1
    return lost.pop()


def axis(*vectors: np.ndarray, mean: np.ndarray | None = None) -> Axes:
    """Axes along these vectors."""
    basis = np.stack(vectors).astype(np.float32)
    return Axes(np.zeros(basis.shape[1], np.float32) if mean is None else mean, basis, deviation_of(basis))


def unit(dim: int, place: int) -> np.ndarray:
    return np.eye(1, dim, place, dtype=np.float32)[0]


def level(edges: list[int], steps: list[float], norms: list[float]) -> PrefixLevel:
    return PrefixLevel(
        np.array(edges), np.array(steps, np.float32), np.array(norms, np.float32), np.zeros(len(norms), np.float32)
    )


def both(axes: Axes, one: PrefixLevel, pruned_by: str) -> SearchPlan:
    """A plan of this level, at the first and second level or at the second alone: there the first excludes nothing."""
    if pruned_by == "first":
        return SearchPlan(axes, one, one, 2)
    loose = PrefixLevel(one.edges, one.step, one.norm_step * np.float32(1e-9), one.norm_typical)
    return SearchPlan(axes, loose, one, 2)


def flat() -> tuple[np.ndarray, np.ndarray]:
    """A unit axis b and a query q near 4 b: in float32 each lane of b.q drops every product but its first."""
    t = 2.0**-14
    b = np.full(FLAT, t, np.float32)
    b[:16] = np.sqrt((1 - (FLAT - 16) * t**2) / 16)
    while np.square(b.astype(np.float64)).sum() < 1:
        b[0] = np.nextafter(b[0], np.float32(1))
    q = np.full(FLAT, 2.0**-13 * (1 - 2.0**-20), np.float32)
    q[:16] = 1
    return b, q


PRUNED_BY = pytest.mark.parametrize("pruned_by", ["first", "second"])


@needs_core
@each_kind
@PRUNED_BY
def test_float32_of_a_coordinate_within_the_codes(pruned_by: str, kind: str) -> None:
    b, q = flat()
    row = (b / (b.astype(np.float64) @ b)).astype(np.float32)
    one = level([0, 1], [1 / 127], [1e-7, 1e-4, 127.5])
    assert lost_rows(both(axis(b), one, pruned_by), row[None], [q[None]], "Max", kind) == 0


@needs_core
@each_kind
@PRUNED_BY
def test_float32_of_a_coordinate_beyond_the_codes(pruned_by: str, kind: str) -> None:
    b, q = flat()
    b, q = np.append(b, np.float32(0)), np.append(q, np.float32(0))
    row = (b / (b.astype(np.float64) @ b)).astype(np.float32)
    one = level([0, 1, 2], [1e-9], [1e-7, (1 + 2e-7) / 255, 1e-4, 1])
    assert lost_rows(both(axis(unit(len(b), FLAT), b), one, pruned_by), row[None], [q[None]], "Max", kind) == 0


@needs_core
@each_kind
@PRUNED_BY
def test_float32_of_what_axes_hold_of_a_query(pruned_by: str, kind: str) -> None:
    """Queries that the axis holds but for a ten-thousandth, and a row that the axis does not hold."""
    rng = np.random.default_rng(7)
    b, e = np.linalg.qr(rng.standard_normal((64, 2)))[0].T
    queries = [(rng.uniform(5, 15) * b + 1e-3 * e).astype(np.float32)[None] for _ in range(30)]
    row = (1000 * e).astype(np.float32)
    one = level([0, 1], [1 / 127], [1e-3, 1000 * (1 + 1e-6) / 255, 1])
    assert lost_rows(both(axis(b), one, pruned_by), row[None], queries, "Max", kind) == 0


@needs_core
@each_kind
@PRUNED_BY
def test_products_that_underflow(pruned_by: str, kind: str) -> None:
    b, q = np.zeros((2, 16), np.float32)
    b[:2] = 0.4, np.sqrt(0.84)
    q[0] = 2.0**-149
    row = np.float32(1e15) * b
    one = level([0, 1], [1e15 / 127], [1e8, 1e12, 1])
    assert lost_rows(both(axis(b), one, pruned_by), row[None], [q[None]], "Max", kind) == 0


@needs_core
@each_kind
@PRUNED_BY
def test_weights_of_norms_are_rounded_up(pruned_by: str, kind: str) -> None:
    """A row of which only a norm is known, and queries in whose units the norm's weight is no integer."""
    one = level([0, 1, 2], [1 / 127], [1e-7, (1 + 2e-7) / 255, 1e-4, 1])
    weights = np.random.default_rng(12).uniform(0.5, 1, (30, 2))
    queries = [(50 * w[0] * unit(16, 0) + w[1] * unit(16, 1))[None].astype(np.float32) for w in weights]
    plan = both(axis(unit(16, 0), unit(16, 1)), one, pruned_by)
    assert lost_rows(plan, unit(16, 1)[None], queries, "Max", kind) == 0


@needs_core
def test_a_maximum_of_products_that_underflow() -> None:
    """Float32 drops each product of the second region, whose sum is the larger one."""
    query = np.full((1, 64), 1e-20, np.float32)
    regions = np.zeros((2, 64), np.float32)
    regions[0, 0], regions[1] = 2.8e-24, 6e-26
    part = array_part(regions, np.array([0, 2]), "float32")
    gallery = GalleryRows([part], "images", AlignmentConfig("VHA", "Max"))
    expected = (regions.astype(np.float64) @ query[0].astype(np.float64)).max()
    for name in core.features():
        search = CompiledSearch(gallery, None, THREADS, name)
        np.testing.assert_allclose(search.scores([query], np.array([0])), expected, rtol=1e-12)
        np.testing.assert_allclose(search.rank([query], 1)[0].scores, expected, rtol=1e-12)


@needs_core
@each_kind
def test_a_row_of_which_nothing_is_known_is_scored(kind: str) -> None:
    """Infinite errors, as a file may claim them, make no bound: pooling them is not a number."""
    rows = np.random.default_rng(13).standard_normal((20, 16)).astype(np.float32)
    part = array_part(rows, np.arange(21), "float32")
    unknown = replace(part, error=np.full_like(part.error, np.inf))
    alignment = AlignmentConfig("VHA", "LSE")
    query = rows[3:4]
    for name in core.features():
        found, expected = (
            CompiledSearch(GalleryRows([one], kind, alignment), None, THREADS, name).rank([query], 5)[0]
            for one in (unknown, part)
        )
        assert found.rows.tolist() == expected.rows.tolist()
        assert found.scores.tolist() == expected.scores.tolist()


@needs_core
@each_kind
@PRUNED_BY
def test_float64_of_a_mean_that_cancels(pruned_by: str, kind: str) -> None:
    """2^27 and -2^27 with 0.6 of the former's last place beside them: the score rounds it up to the whole place."""
    step = np.float32(0.6 * 2.0**-25 / 127)
    mean = 2.0**27 * (unit(16, 0) - unit(16, 1))
    row = mean + 127 * step * unit(16, 8)
    q = unit(16, 0) + unit(16, 1) + unit(16, 8)
    one = level([0, 1], [step], [1e-17, 1e-14, 1])
    plan = both(axis(unit(16, 8), mean=mean), one, pruned_by)
    assert lost_rows(plan, row[None], [q[None]], "Max", kind, temperature=1e-9) == 0


def at_the_mean() -> tuple[SearchPlan, np.ndarray]:
    """A row that is the mean, so that its bound is its score but for roundings; the axis holds nothing."""
    one = level([0, 1], [1e-30], [1e-30, 1e-30, 1])
    mean = unit(16, 0)
    return SearchPlan(axis(unit(16, 1), mean=mean), one, one, 2), mean


@needs_core
@each_kind
def test_bounds_in_float32_are_rounded_up(kind: str) -> None:
    plan, row = at_the_mean()
    weights = np.random.default_rng(8).uniform(0.5, 1, (30, 2))
    queries = [(w[0] * unit(16, 0))[None].astype(np.float32) for w in weights]
    plan.axes.mean[0] = row[0] = np.float32(0.7)  # products need 48 bits
    assert lost_rows(plan, row[None], queries, "Max", kind) == 0
    tiny = [np.float32(2.0**-149) * unit(16, 0)[None]]
    plan.axes.mean[0] = row[0] = np.float32(0.4)
    assert lost_rows(plan, row[None], tiny, "Max", kind) == 0


@needs_core
@each_kind
def test_bounds_without_levels_are_rounded_up(kind: str) -> None:
    """Integers by a query of one size, so that codes lose nothing, and 48 bits of each product count."""
    rng = np.random.default_rng(9)
    rows = rng.integers(-127, 128, (40, 256)).astype(np.float32)
    rows[:, 0] = 127
    queries = [rng.uniform(0.5, 1) * rng.choice([-1, 1], (1, 256)) for _ in range(10)]
    plan = SearchPlan(axis(unit(256, 0)), None, None, 1)
    for given in (plan, None):
        assert lost_rows(given, rows, [q.astype(np.float32) for q in queries], "Max", kind, temperature=1e-9) == 0


# -- pooling


def words(values: np.ndarray) -> np.ndarray:
    """A query whose words have these similarities with the row 1."""
    return values.astype(np.float32)[:, None]


def one_coordinate(pruned_by: str) -> SearchPlan:
    return both(axis(unit(1, 0)), level([0, 1], [1 / 128], [1e-12, 1e-7, 127.5]), pruned_by)


@needs_core
@PRUNED_BY
@pytest.mark.parametrize("pooling", ["Sum", "Mean"])
def test_sums_that_round_down(pooling: str, pruned_by: str) -> None:
    """From 512 on, each addition of a little more than 1 loses half of a last place."""
    query = words(np.full(1024, 1 + 2.0**-15 - 2.0**-19))
    row = np.float32([[127 / 128]])
    assert lost_rows(one_coordinate(pruned_by), row, [query], pooling, "images") == 0


@needs_core
@PRUNED_BY
def test_sums_of_exponentials_that_round_down(pruned_by: str) -> None:
    """One similarity of 0; from 512 on, each addition of a little less than 1 loses half of a last place."""
    values = np.full(1024, np.log(1 - 2.0**-15 - 2.0**-19) * 128 / 127)
    values[0] = 0
    assert lost_rows(one_coordinate(pruned_by), np.float32([[127 / 128]]), [words(values)], "LSE", "images") == 0


@needs_core
def test_a_peak_that_is_divided_in_float32() -> None:
    """Among temperatures whose inverse and products round down together."""
    rng = np.random.default_rng(10)
    plan, row = at_the_mean()
    lost = 0
    for temperature in rng.uniform(1e-3, 2e-3, 400).tolist():
        query = np.float32(rng.uniform(0.5, 1)) * unit(16, 0)[None]
        lost += lost_rows(plan, row[None], [query], "LSE", "images", temperature)
    assert lost == 0


@needs_core
@PRUNED_BY
def test_pooling_in_float64_may_fall_where_a_value_rises(pruned_by: str) -> None:
    rng = np.random.default_rng(11)
    queries = [words(size * rng.standard_normal(5)) for size in (2e-11, 2e-10) for _ in range(150)]
    assert lost_rows(one_coordinate(pruned_by), np.float32([[127 / 128]]), queries, "LSE", "images") == 0


# -- rows, as they are coded


def test_what_float64_loses_of_a_rows_coordinates() -> None:
    """1 - 1 + 2^-60 is 2^-60, and 0 in some orders of summation."""
    axes = Axes(np.zeros(4, np.float32), np.full((1, 4), 0.5, np.float32), 0.0)
    for place in range(4):
        vector = np.roll([2.0**-60, 1.0, -1.0, 0.0], place)
        rotated = rotate(vector[None], axes)
        assert rotated.coordinates[0, 0] + rotated.lost[0] >= 2.0**-61


def test_what_float64_loses_of_what_axes_leave() -> None:
    """1 + 10^-18 - 1."""
    rotated = rotate(np.array([[1.0, 1e-9]]), Axes(np.zeros(2, np.float32), np.eye(1, 2, dtype=np.float32), 0.0))
    assert rotated.rest[0] >= 1e-9
