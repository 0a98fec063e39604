"""Terms of the proof at the head of bounds.py that are needed: here are vectors a search without them would lose.

A trap is a gallery of thirty equal rows and, last, one that scores a little more. The equal rows are coded without
loss, and the last row's codes fall short of its score by what one term allows for. Without that term its upper bound
lies below the others' scores, and a search for the best row returns one of those.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.gallery.compiled import CompiledSearch, CoreThreads, open_core
from chan_rt.runtime.gallery.prepare import plan_for
from chan_rt.runtime.gallery.proof.gallery_rows import GalleryRows
from chan_rt.runtime.gallery.proof.prefix import (
    Axes,
    PrefixLevel,
    SearchPlan,
    code_vectors,
    deviation_of,
    fit_axes,
    fit_level,
    largest_coordinates,
    plan_arrays,
    plan_of,
    rotate,
)
from chan_rt.runtime.gallery.proof.prefix_bounds import LARGEST, weigh, weigh_integers
from chan_rt.runtime.gallery.proof.rows import array_part
from chan_rt.runtime.gallery.proof.true_score import true_row

core = open_core()
needs_core = pytest.mark.skipif(core is None, reason="the search core is not compiled here")
THREADS = CoreThreads(1)
DIM, DECOYS = 64, 30  # more rows than a search scores for its first threshold
UNIT32 = 2.0**-24


def vector(**values: float) -> np.ndarray:
    """A vector of 64 numbers of which those named e0, e1, ... are not zero."""
    x = np.zeros(DIM, np.float32)
    for name, value in values.items():
        x[int(name[1:])] = value
    return x


def axes_of(count: int = 8, **stretched: float) -> Axes:
    """The first unit vectors as axes; of those named e0, e1, ... the square of the length is not 1."""
    basis = np.eye(count, DIM, dtype=np.float32)
    for name, square in stretched.items():
        basis[int(name[1:])] *= np.float32(np.sqrt(square))
    return Axes(np.zeros(DIM, np.float32), basis, deviation_of(basis))


def level_of(
    steps: list[float], norm_steps: list[float], typical: float = 0.0, finer: tuple[float, ...] = ()
) -> PrefixLevel:
    """Four coordinates of eight axes: norms along e0, along e1 to e3, along e4 to e7, of the rest, and of the codes.

    finer: steps of second codes of the first of them.
    """
    norm_typical = np.full(5, typical, np.float32)
    arrays = [np.array(values, np.float32) for values in (steps, norm_steps)]
    return PrefixLevel(np.array([0, 1, 4, 8]), *arrays, norm_typical, np.array(finer, np.float32))


def best_row(
    plan: SearchPlan | None, decoy: np.ndarray, target: np.ndarray, query: np.ndarray, pooling: str, kind: str
) -> int:
    """Which row a certified search returns, after the true scores were seen to differ."""
    rows = np.concatenate([np.tile(decoy, (DECOYS, 1)), target[None]])
    part = array_part(rows, np.arange(len(rows) + 1), "float32", plan)
    alignment = AlignmentConfig("VHA", pooling, 0.1, 1.0)
    gallery = GalleryRows([part], kind, alignment)
    scores = [true_row(part.fine(row), query, kind, alignment).score for row in (0, DECOYS)]
    assert scores[0] < scores[1]
    found = {int(CompiledSearch(gallery, plan, THREADS, name).rank([query], 1)[0].rows[0]) for name in core.features()}
    assert len(found) == 1
    return found.pop()


FINE = [0.001] * 4 + [1.0]
ONES = [1.0] * 4
PREFIX_TRAPS = {
    # name: (axes, level, decoy, target, query)
    "lost inside the codes' axes": (
        axes_of(),
        level_of([1, 0.25, 1, 1], [0.01] * 4 + [1]),
        vector(e0=10, e1=0.25),
        vector(e0=10.49),
        vector(e0=1, e1=1),
    ),
    "lost inside by second codes": (
        axes_of(),
        level_of([1, 0.1, 1, 1], [0.01] * 4 + [1], finer=(0.25, 0.01)),
        vector(e0=10, e1=0.3),
        vector(e0=10.37),
        vector(e0=1, e1=1),
    ),
    "the query's rounding of second codes": (
        axes_of(),
        level_of([1, 1, 0.25, 1], FINE, typical=1e6, finer=(1 / 256, 1 / 256)),  # the first codes' factors are exact
        vector(e0=10, e2=0.25),
        vector(e0=10, e1=0.49),
        vector(e0=127 / 128, e1=126 / 128, e2=1),
    ),
    "lost beyond the codes' axes": (
        axes_of(),
        level_of([1, 0.25, 1, 1], [0.01] * 4 + [1]),
        vector(e0=10, e1=0.25),
        vector(e0=10, e5=0.49),
        vector(e0=1, e1=1, e5=1),
    ),
    "lost beyond all axes": (
        axes_of(),
        level_of([1, 0.25, 1, 1], [0.01] * 4 + [1]),
        vector(e0=10, e1=0.25),
        vector(e0=10, e20=0.49),
        vector(e0=1, e1=1, e20=1),
    ),
    "lost by clipping": (
        axes_of(),
        level_of(ONES, [1] * 5),
        vector(e0=127, e1=50),
        vector(e0=200),
        vector(e0=1, e1=1),
    ),
    "the query's rounding": (
        axes_of(),
        level_of([1, 1, 0.25, 1], FINE, typical=1e6),
        vector(e0=10, e2=0.25),
        vector(e0=10, e1=100),
        vector(e0=1, e1=0.49 / 127, e2=1),
    ),
    "a norm rounded up to its byte": (
        axes_of(),
        level_of([1, 0.47, 1, 1], [0.45, 0.001, 0.001, 0.001, 1]),
        vector(e0=10, e1=0.47),
        vector(e0=10.49),
        vector(e0=1, e1=1),
    ),
    "a norm past its byte": (
        axes_of(),
        level_of([1, 0.4, 1, 1], FINE),
        vector(e0=10, e1=0.4),
        vector(e0=10.49),
        vector(e0=1, e1=1),
    ),
    "what skewed axes add to codes": (
        axes_of(e0=1.2),
        level_of([np.sqrt(1.2), 1, 1, 1], [0.1, 0.1, 0.1, 0.5, 1]),
        vector(e1=-103),
        vector(e0=-10),
        vector(e0=1, e1=0.1),
    ),
    "what skewed axes hold of a row": (
        axes_of(e5=1.2),
        level_of([1, 0.25, 1, 1], [0.05] * 4 + [1]),
        vector(e1=3),
        vector(e5=1.2, e20=0.49),
        vector(e1=0.1, e20=1),
    ),
    "what skewed axes hold of a query": (
        axes_of(e5=1.2),
        level_of([1, 0.25, 1, 1], [0.001] * 3 + [0.05, 1]),
        vector(e1=0.25),
        vector(e20=0.49),
        vector(e1=1, e5=3, e20=1),
    ),
}


@needs_core
@pytest.mark.parametrize("kind", ["images", "captions"])  # in which kernels take the maximum over rows, or over words
@pytest.mark.parametrize("pruned_by", ["first", "second"])
@pytest.mark.parametrize("name", PREFIX_TRAPS)
def test_no_row_is_lost_to_a_prefix(name: str, pruned_by: str, kind: str) -> None:
    axes, level, decoy, target, query = PREFIX_TRAPS[name]
    first = level
    if pruned_by == "second":  # the first level's norms are so coarse that it excludes no row
        first = replace(level, norm_step=level.norm_step * np.float32([1000, 1000, 1000, 1000, 1]))
    plan = SearchPlan(axes, first, level, 2)
    assert best_row(plan, decoy, target, query[None], "Max", kind) == DECOYS


INT8_TRAPS = {
    # name: (decoy, target, query, digits)
    "the gallery's rounding along axes": (
        vector(e0=127, e2=1),
        vector(e0=127, e1=0.49),
        vector(e1=1, e2=0.25),
        2,
    ),
    "the gallery's rounding beyond axes": (
        vector(e0=127, e2=1),
        vector(e0=127, e20=0.49),
        vector(e20=1, e2=0.25),
        2,
    ),
    "the query's rounding along axes": (
        vector(e3=20),
        vector(e2=100),
        vector(e1=1, e2=0.49 / 127, e3=2 / 127),
        1,
    ),
    "the query's rounding beyond axes": (
        vector(e3=20),
        vector(e20=100),
        vector(e1=1, e20=0.49 / 127, e3=2 / 127),
        1,
    ),
}


@needs_core
@pytest.mark.parametrize("kind", ["images", "captions"])
@pytest.mark.parametrize("axes", [0, 8])
@pytest.mark.parametrize("name", INT8_TRAPS)
def test_no_row_is_lost_to_int8_codes(name: str, axes: int, kind: str) -> None:
    decoy, target, query, digits = INT8_TRAPS[name]
    plan = SearchPlan(axes_of(8 if axes else 1), None, None, digits)
    assert best_row(plan, decoy, target, query[None], "Max", kind) == DECOYS


@needs_core
@pytest.mark.parametrize("place", ["e2", "e20"])  # along the axes, and beyond them
def test_no_row_is_lost_to_the_high_digits_of_a_query(place: str) -> None:
    """Of the query's number at `place` the high digit is 0. The levels exclude no row, and rank the decoys first."""
    level = level_of(ONES, [1] * 5)
    query = vector(e1=1, **{place: 0.49 / 127}, e3=2 / 127, e31=0.1)
    decoy, target = vector(e3=20, e30=200), vector(**{place: 100})
    plan = SearchPlan(axes_of(), level, level, 2)
    assert best_row(plan, decoy, target, query[None], "Max", "images") == DECOYS


# -- similarities in float32


@needs_core
@pytest.mark.parametrize("kind", ["images", "captions"])
def test_what_float32_cannot_tell_is_decided_in_float64(kind: str) -> None:
    """Vectors a last place apart: as rows of one vector each, and as the vectors of one row."""
    rng = np.random.default_rng(32)
    x = rng.standard_normal((1, 256)).astype(np.float32)
    near = np.nextafter(np.tile(x, (40, 1)), rng.choice(np.float32([-9, 9]), (40, 256)))
    alignment = AlignmentConfig("VHA" if kind == "images" else "THA", "Max", 0.1, 1.0)
    for starts in (np.arange(41), np.arange(0, 41, 8)):
        part = array_part(near, starts)
        gallery = GalleryRows([part], kind, alignment)
        queries = [*rng.standard_normal((40, 1, 256)).astype(np.float32)]
        for query, found in zip(queries, CompiledSearch(gallery, None, THREADS).rank(queries, 1), strict=True):
            true = [true_row(part.fine(row), query, kind, alignment) for row in range(gallery.count)]
            scores = [row.score for row in true]
            best = int(np.argmax(scores))
            assert found.rows.tolist() == [best]
            assert found.scores.tolist() == [scores[best]]
            assert found.details[0].winners.tolist() == true[best].winners.tolist()


@needs_core
@pytest.mark.parametrize(("dim", "reached"), [(256, 0.65), (1024, 0.88), (8192, 0.98)])
def test_float32_bound_is_nearly_reached(dim: int, reached: float) -> None:
    """Each lane's sum is 1 and every further product is half of its last place, which rounding to even drops."""
    x = np.full((1, dim), 2.0**-12, np.float32)
    x[:, :16] = 1
    exact = 16 + (dim - 16) * UNIT32
    part = array_part(x, np.array([0, 1]))
    gallery = GalleryRows([part], "images", AlignmentConfig("VHA", "Max", 0.1, 1.0))
    norm, size = float(part.norm[0]) + float(part.error[0]), np.linalg.norm(x.astype(np.float64))
    roundings = (dim // 16 + 6) * UNIT32
    bound = roundings / (1 - roundings) * size * norm  # of float_error in core/fine.cpp, the main term
    for name in core.features():
        search = CompiledSearch(gallery, None, THREADS, name)
        # nearer than int8 codes can tell and further than float32 needs, so what returns is float32's lower bound
        limit = np.array([exact - 3 * bound])
        counts, _, scores = search.above([x], limit, limit)
        assert counts.tolist() == [1]
        similarity = float(scores[0]) + bound  # less terms of some 10^-9 of it
        assert reached * bound < exact - similarity < bound


# -- (3) in numpy


def upper_bounds(queries: np.ndarray, stored: np.ndarray, level: PrefixLevel, axes: Axes) -> np.ndarray:
    """The right side of (3) in float64 from coded vectors [V, width]: [queries, V]."""
    exact, mean = queries.astype(np.float64), axes.mean.astype(np.float64)
    y = exact @ axes.columns
    numbers = stored[:, : level.norms] * level.norm_step.astype(np.float64)
    codes = stored[:, level.codes].astype(np.float64) - 128
    f = max(0.0, 1 - axes.deviation)
    along = np.sqrt(np.add.reduceat(np.square(y), level.edges[:-1], axis=1))
    rest = np.sqrt(np.square(exact).sum(axis=1, keepdims=True) - f * np.square(y).sum(axis=1, keepdims=True))
    middle = (exact @ mean)[:, None] + f * (y[:, level.coordinate_of] * level.steps) @ codes.T
    return middle + np.concatenate([along, rest], axis=1) @ numbers[:, :-1].T


def random_axes(rng: np.random.Generator, x: np.ndarray, queries: np.ndarray) -> Axes:
    """Axes fitted to the vectors, or skewed ones, or some that have nothing to do with each other."""
    dim = x.shape[1]
    match rng.integers(4):
        case 0:
            return fit_axes(x, queries)
        case 1:
            return fit_axes(x, None)
        case 2:  # nearly orthonormal, stretched
            basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0][: rng.integers(1, dim + 1)]
            basis *= rng.uniform(0.8, 1.1, (len(basis), 1))
        case _:
            basis = rng.standard_normal((rng.integers(1, dim + 1), dim)) / np.sqrt(dim)
    basis = np.ascontiguousarray(basis, np.float32)
    return Axes(rng.standard_normal(dim).astype(np.float32), basis, deviation_of(basis))


def checked_pairs(rng: np.random.Generator) -> int:
    """Code random vectors and compare (3) with each similarity; returns how many it bounded."""
    dim = int(rng.choice([1, 2, 16, 64, 130]))
    x = rng.standard_normal((60, dim)) * 10.0 ** rng.integers(-3, 4)
    if rng.integers(2):
        x *= np.arange(1, dim + 1) ** -1.0
    if rng.integers(2):
        x = np.rint(x)
    if rng.integers(2):
        x[:20] *= 30  # far outside of what the steps are fitted to
    x = x.astype(np.float32)
    queries = rng.standard_normal((40, dim)).astype(np.float32)
    axes = random_axes(rng, x, queries)
    sample = x[20:]
    level = fit_level(rotate(sample, axes), largest_coordinates(sample, axes), int(rng.choice([16, 32, 64])))
    if rng.integers(2):
        level = replace(level, norm_step=level.norm_step * np.float32(20))
    stored, loose = code_vectors(rotate(x, axes), level)
    z = (x - axes.mean).astype(np.float32)  # and queries that are most alike what is lost
    queries = np.concatenate([queries, z[:10], -z[-10:]])
    bounds = upper_bounds(queries, stored, level, axes)
    true = queries.astype(np.float64) @ x.astype(np.float64).T
    sizes = np.linalg.norm(queries.astype(np.float64), axis=1)[:, None] * (
        np.linalg.norm(x.astype(np.float64), axis=1) + np.linalg.norm(axes.mean.astype(np.float64))
    )
    bounded = np.broadcast_to(~loose, true.shape)
    assert (bounds + 1e-12 * sizes >= true)[bounded].all()
    alignment = AlignmentConfig("VHA", "Mean", 0.1, 1.0)
    largest = float(np.linalg.norm(x.astype(np.float64), axis=1).max()) * (1 + 1e-9)
    in_float32 = weigh(queries.astype(np.float64), SearchPlan(axes, None, level, 2), largest, 1.0, alignment)
    found = in_float32.above(stored).T
    assert (found >= true)[bounded].all()
    assert (found <= bounds + 1e-3 * sizes.max(axis=1, keepdims=True) + 1e-12).all(), "float32 costs next to nothing"
    integers = weigh_integers(queries.astype(np.float64), axes, level, largest, 1.0, alignment)
    assert np.abs(integers.integers).max() <= LARGEST
    found = integers.above(stored).T
    assert (found >= true)[bounded].all()
    lost = integers.scale[:, None] * (np.sqrt(len(level.steps)) * level.norm_step[-1] + level.norms) * 255
    assert (found <= bounds + lost + 1e-9 * sizes.max(axis=1, keepdims=True) + 1e-12).all()
    return int(bounded.sum())


def test_second_codes_leave_less_of_the_first_coordinates() -> None:
    """One coordinate has them at 16 bytes; of rows with one large coordinate that is where the loss is."""
    rng = np.random.default_rng(5)
    x = (rng.standard_normal((400, 64)) * np.r_[8.0, np.full(63, 0.01)]).astype(np.float32)
    axes = fit_axes(x, None)
    rotated = rotate(x, axes)
    level = fit_level(rotated, largest_coordinates(x, axes), 16)
    assert level.again == 1
    stored, loose = code_vectors(rotated, level)
    assert not loose.any()
    assert (stored[:, 0] * level.norm_step[0] <= level.step[0] / 500).all(), "half of a finer step, rounded up"
    without = replace(level, finer=np.zeros(0, np.float32))
    assert code_vectors(rotated, without)[1].mean() > 0.9, "norms as small as these do not hold what is lost"


def test_a_plan_of_an_earlier_version_has_no_second_codes() -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((200, 256)).astype(np.float32)
    plan = plan_for(x, None, [x])
    assert plan.first is not None
    arrays = plan_arrays(plan)
    older = {name: array for name, array in arrays.items() if not name.endswith("finer")}
    levels = [plan_of(each, 256, 2).first for each in (arrays, older)]
    assert [(level.again, level.coordinates) for level in levels if level] == [
        (4, plan.first.coordinates),
        (0, plan.first.coordinates),
    ]


@pytest.mark.parametrize(("again", "problem"), [(200, "second codes must be of some"), (0, "steps must be positive")])
def test_second_codes_that_a_file_cannot_have_are_refused(again: int, problem: str) -> None:
    x = np.random.default_rng(7).standard_normal((200, 256)).astype(np.float32)
    arrays = plan_arrays(plan_for(x, None, [x]))
    arrays["second_finer"] = np.ones(again, np.float32) if again else np.zeros(2, np.float32)
    with pytest.raises(ValueError, match=problem):
        plan_of(arrays, 256, 2)


def test_a_product_in_float32_that_rounds_down_is_allowed_for() -> None:
    """Rows that are coded without loss, so that nothing but that separates their bounds from their similarities."""
    rng = np.random.default_rng(8)
    x = rng.integers(-127, 128, (200, 96)).astype(np.float32)
    queries = rng.uniform(1, 2, (50, 96)).astype(np.float32)
    axes = Axes(np.zeros(96, np.float32), np.eye(96, dtype=np.float32), 0.0)
    norms = np.array([1e-9, 1e-4, 127 * 96**0.5 / 250], np.float32)
    level = PrefixLevel(np.array([0, 96]), np.ones(96, np.float32), norms, np.zeros(3, np.float32))
    stored, loose = code_vectors(rotate(x, axes), level)
    assert not loose.any()
    exact = queries.astype(np.float64)
    weights = weigh(exact, SearchPlan(axes, None, level, 2), 1300.0, 1.0, AlignmentConfig("VHA", "Mean", 0.1, 1.0))
    true = x.astype(np.float64) @ exact.T
    assert (weights.above(stored) >= true).all()
    alone = stored[:, 3:99].astype(np.float32) @ weights.factors[3:99] - 128.0 * exact.sum(axis=1)
    assert (alone < true - 1e-6).any(), "without the allowance a bound would be too low"


@pytest.mark.parametrize(
    ("seed", "least"),
    [(3, 100_000), *(pytest.param(seed, 1_000_000, marks=pytest.mark.nightly) for seed in range(300, 310))],
)
def test_prefix_bounds_hold_for_pairs(seed: int, least: int) -> None:
    """100,000 of them; 10,000,000 at night."""
    rng, pairs = np.random.default_rng(seed), 0
    while pairs < least:
        pairs += checked_pairs(rng)
