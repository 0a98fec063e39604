"""The compiled search returns what scoring every row does, to the bit, whatever bounds the rows and whatever they hold.

Galleries here are made to break a bound: on the integer grid, past the range that steps were fitted to, with one huge
coordinate, with equal rows by the thousand. Each answer is compared with the true scores of all rows in float64, and
with what the numpy kernel finds.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.errors import InputError
from chan_rt.runtime.gallery.compiled import CompiledSearch, CoreThreads, _fastest, open_core
from chan_rt.runtime.gallery.estimate import CpuEstimator
from chan_rt.runtime.gallery.kernels.choose import open_kernel
from chan_rt.runtime.gallery.kernels.pool import Pool
from chan_rt.runtime.gallery.prefix_estimate import PrefixEstimator
from chan_rt.runtime.gallery.proof.certify import Ranking
from chan_rt.runtime.gallery.proof.gallery_rows import GalleryRows
from chan_rt.runtime.gallery.proof.prefix import SearchPlan, fit_axes, fit_level, largest_coordinates, rotate
from chan_rt.runtime.gallery.proof.rows import ArrayPart, array_part
from chan_rt.runtime.gallery.proof.true_score import TrueRow, true_row
from chan_rt.runtime.gallery.rank import Ranker

core = open_core()
if core is None:
    pytest.skip("the search core is not compiled here", allow_module_level=True)

POOL = Pool(1)
THREADS = CoreThreads(2)
POOLINGS = ("Max", "Mean", "Sum", "LSE", "Softmax")
EACH = [*itertools.product(("VHA", "THA"), POOLINGS)]
DATA = (
    *("unit", "trained", "grid", "clipped", "spike", "equal", "near", "zero", "denormal", "tiny", "huge", "mixed"),
    "sparse",
)


def vectors_of(rng: np.random.Generator, data: str, count: int, dim: int) -> np.ndarray:
    """Vectors [count, dim] of one kind of trouble."""
    x = rng.standard_normal((count, dim)).astype(np.float32)
    match data:
        case "unit":
            x /= np.linalg.norm(x, axis=1, keepdims=True)
        case "trained":  # a mean and a spectrum that falls
            x = x * np.float32(1) / np.arange(1, dim + 1, dtype=np.float32) + np.float32(0.3)
        case "grid":
            x = np.clip(np.rint(40 * x), -127, 127)
            x[:, 0] = 127
        case "clipped":  # half of the vectors lie far outside of what the others span
            x[: count // 2] *= np.float32(50)
        case "spike":
            x[np.arange(count), rng.integers(0, dim, count)] = rng.choice(np.float32([-1e6, 1e6]), count)
        case "equal":
            x = np.tile(x[:1], (count, 1))
        case "near":
            x = np.nextafter(x[:1], x[:1] + np.sign(np.round(x)))
        case "zero":
            x *= (np.arange(count) % 3 == 0)[:, None]
        case "denormal":
            x *= np.float32(1e-42)
        case "tiny":
            x *= np.float32(1e-30)
        case "huge":
            x = np.clip(x * np.float32(1e15), -1e15, 1e15)
        case "mixed":
            x *= np.float32(10.0) ** rng.integers(-8, 8, (count, 1)).astype(np.float32)
        case "sparse":
            x = np.where(rng.random(x.shape) < 2 / dim, x, 0)
    return np.ascontiguousarray(x, np.float32)


def plan_for(
    vectors: np.ndarray, queries: np.ndarray | None, digits: int = 1, widths: tuple[int, int] | None = (32, 64)
) -> SearchPlan:
    """A plan for vectors like these; widths: bytes of the levels, None for none."""
    axes = fit_axes(vectors, queries)
    if widths is None:
        return SearchPlan(axes, None, None, digits)
    rotated, largest = rotate(vectors, axes), largest_coordinates(vectors, axes)
    first, second = (fit_level(rotated, largest, width) for width in widths)
    return SearchPlan(axes, first, second, digits)


def part_of(rows: list[np.ndarray], plan: SearchPlan | None, precision: str = "float32") -> ArrayPart:
    starts = np.cumsum([0] + [len(row) for row in rows]).astype(np.int64)
    return array_part(np.concatenate([*rows, np.zeros((0, rows[0].shape[1]), np.float32)]), starts, precision, plan)


def truth(gallery: GalleryRows, query: np.ndarray) -> list[TrueRow]:
    """The true score of every row."""
    return [
        true_row(part.fine(row), query, gallery.kind, gallery.alignment)
        for part in gallery.parts
        for row in range(len(part.starts) - 1)
    ]


def check(found: Ranking, rows: list[TrueRow], k: int, allowed: np.ndarray, floor: float = -np.inf) -> None:
    """Rows, scores, similarities and winners are those of exhaustive scoring, to the bit."""
    scores = np.array([row.score for row in rows])
    candidates = np.flatnonzero(allowed)
    order = candidates[np.lexsort((candidates, -scores[candidates]))][:k]
    order = order[scores[order] >= floor]
    assert found.certified
    assert found.candidates == len(candidates)
    assert found.rows.tolist() == order.tolist()
    assert found.scores.tolist() == scores[order].tolist()
    for row, detail in zip(order, found.details, strict=True):
        assert detail.maxima.tolist() == rows[row].maxima.tolist()
        assert detail.winners.tolist() == rows[row].winners.tolist()


def check_bounds(search: CompiledSearch, query: np.ndarray, count: int) -> None:
    """No bound of a row's score is below it: with each row's own score as its threshold, all rows are found."""
    scores = search.scores([query] * count, np.arange(count))
    _, found, exact = search.above([query], np.array([np.inf]), scores)
    assert found.tolist() == list(range(count))
    assert exact.tolist() == scores.tolist()


def fitted(rng: np.random.Generator, rows: list[np.ndarray], query: np.ndarray) -> SearchPlan | None:
    """A plan of some kind: for all rows and queries, for a few rows only, without queries, without levels, or none."""
    digits = int(rng.integers(1, 3))
    widths = [(16, 32), (32, 64), (64, 256)][rng.integers(3)]
    every, few = np.concatenate(rows), rows[-1][:1]
    match rng.integers(6):
        case 0:
            return None
        case 1:
            return plan_for(every, query, digits, None)
        case 2:  # what most rows hold lies outside of what this was fitted to
            return plan_for(few, query, digits, widths)
        case 3:
            return plan_for(every, None, digits, widths)
    return plan_for(every, query, digits, widths)


def floors_of(rng: np.random.Generator, true: list[list[TrueRow]]) -> np.ndarray:
    """For each query the score of one of its rows, the next number above or below it, or a floor far from all."""
    some = np.array([rows[rng.integers(len(rows))].score for rows in true])
    around = [some, np.nextafter(some, np.inf), np.nextafter(some, -np.inf), np.full(len(true), np.inf), some - 1e9]
    return np.array(around)[rng.choice(5, len(true), p=[0.4, 0.2, 0.2, 0.1, 0.1]), np.arange(len(true))]


def search_some(rng: np.random.Generator, coding: str, pooling: str) -> int:
    """Search one random gallery every way there is; returns how many answers were compared."""
    dim = int(rng.choice([1, 2, 3, 15, 16, 17, 64, 70, 256, 300]))
    count = int(rng.choice([1, 2, 15, 16, 17, 40, 120]))
    longest = int(rng.choice([1, 2, 7, 36]))
    lengths = np.full(count, longest) if rng.integers(2) else rng.integers(1, longest + 1, count)
    data = str(rng.choice(DATA))
    rows = np.split(vectors_of(rng, data, int(lengths.sum()), dim), np.cumsum(lengths)[:-1])
    if rng.integers(6) == 0:
        rows = [rows[i % 3 % count] for i in range(count)]  # equal rows
    others = [vectors_of(rng, str(rng.choice([data, "unit", "mixed"])), int(n), dim) for n in rng.integers(1, 20, 3)]
    near = [rows[int(i)][: int(n)] for i, n in zip(rng.integers(0, count, 2), (5, 20), strict=True)]
    queries = [np.ascontiguousarray(query, np.float32) for query in (*others, *near)]
    plan = fitted(rng, rows, np.concatenate(queries))
    cuts = [0, *sorted(rng.integers(0, count + 1, rng.integers(0, 3)).tolist()), count]
    fits_half = data in ("unit", "trained", "grid", "equal", "near", "zero", "sparse")
    precision = str(rng.choice(["float32", "fixed16", *(["float16", "float16"] if fits_half else [])]))
    pieces = [rows[a:b] for a, b in itertools.pairwise(cuts) if a < b]
    parts = [part_of(piece, plan if rng.integers(4) else None, precision) for piece in pieces]
    temperature = float(rng.choice([1e-6, 0.02, 0.1, 1.0, 1e6]))
    alignment = AlignmentConfig(coding, pooling, 0.1, temperature)
    gallery = GalleryRows(parts, str(rng.choice(["images", "captions"])), alignment)
    allowed = rng.random(count) < rng.choice([1.1, 0.7, 0.1])
    allowed[rng.integers(count)] = True
    k = int(rng.choice([1, 2, 10, count, count + 5]))
    true = [truth(gallery, query) for query in queries]
    floors = floors_of(rng, true)
    compared = 0
    for name in core.features():
        search = CompiledSearch(gallery, plan, THREADS, name)
        for found, expected in zip(search.rank(queries, k, allowed), true, strict=True):
            check(found, expected, k, allowed)
            compared += 1
        for found, expected, floor in zip(search.rank(queries, k, allowed, floors), true, floors, strict=True):
            check(found, expected, k, allowed, floor)
            compared += 1
        masks = rng.random((len(queries), count)) < rng.choice([0.1, 0.7])
        listed = [np.flatnonzero(mask) for mask in masks]
        for found, expected, floor, mask in zip(
            search.rank_listed(queries, k, listed, floors), true, floors, masks, strict=True
        ):
            check(found, expected, k, mask, floor)
            compared += 1
        for query in queries:
            check_bounds(search, query, count)
    kernel = open_kernel("numpy")
    codes = CpuEstimator(gallery, kernel, POOL, 2 if plan is None else plan.digits)
    for estimator in (codes, PrefixEstimator(gallery, codes, POOL)):
        ranker = Ranker(gallery, estimator, kernel, POOL)
        for found, expected in zip(ranker.exact(queries, k, allowed), true, strict=True):
            check(found, expected, k, allowed)
            compared += 1
        for found, expected, floor in zip(ranker.exact(queries, k, allowed, floors), true, floors, strict=True):
            check(found, expected, k, allowed, floor)
            compared += 1
    return compared


def test_amx_scans_where_every_row_is_scanned() -> None:
    """As it measured: AVX-512 is as fast where levels exclude most rows."""
    vectors = np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32)
    features = ["avx512_vnni", "amx", "generic"]
    levels, none = plan_for(vectors, None), plan_for(vectors, None, widths=None)
    assert [_fastest(features, plan) for plan in (levels, none, None)] == ["avx512_vnni", "amx", "amx"]
    assert _fastest(["avx2", "generic"], None) == "avx2"


def test_rows_and_queries_that_are_none_are_refused() -> None:
    vectors = np.random.default_rng(0).standard_normal((4, 3, 16)).astype(np.float32)
    gallery = GalleryRows([part_of(list(vectors), None)], "images", AlignmentConfig())
    search, floor = CompiledSearch(gallery, None, THREADS), np.full(1, -np.inf)
    for row in (-1, 4, 10**12):
        with pytest.raises(ValueError, match=f"must be numbers from 0 to below 4, got {row}"):
            search.rank_listed([vectors[0]], 1, [np.array([0, row])], floor)
        with pytest.raises(ValueError, match=f"must be numbers from 0 to below 4, got {row}"):
            search.scores([vectors[0]], np.array([row]))
    for call in (lambda of: search.rank(of, 1), lambda of: search.rank_listed(of, 1, [np.arange(4)] * 2, np.zeros(2))):
        with pytest.raises(InputError, match=r"queries\[1\] must hold at least one vector"):
            call([vectors[0], vectors[0][:0]])


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("coding", ["VHA", "THA"])
def test_scores_below_all_of_float32_are_found(coding: str, prepared: bool) -> None:
    """The largest values and the least temperature: a bound that float32 rounds to -infinity would exclude the row."""
    alignment = AlignmentConfig(coding, "LSE", 0.1, 1e-6)
    rows = [np.full((1, 1024), size, np.float32) for size in (-1e15, 5e14, -5e14)]
    words, floor = np.full((1, 1024), 1e15, np.float32), np.full(1, -np.inf)
    plan = plan_for(np.concatenate(rows), None, widths=(128, 256) if prepared else None)
    for instructions in core.features():
        gallery = GalleryRows([part_of(rows, plan)], "images", alignment)
        search = CompiledSearch(gallery, plan, THREADS, instructions)
        (found,) = search.rank([words], 3, floors=floor)
        assert found.rows.tolist() == [1, 2, 0]
        assert found.scores[2] < -float(np.finfo(np.float32).max)
        counts, above, _ = search.above([words], search.scores([words], np.zeros(1, np.int64)), np.full(3, np.inf))
        assert (counts.tolist(), sorted(above.tolist())) == ([3], [0, 1, 2])


@pytest.mark.parametrize(("coding", "pooling"), EACH)
def test_answers_are_those_of_exhaustive_scoring(coding: str, pooling: str) -> None:
    rng = np.random.default_rng(14)
    compared = 0
    while compared < 600:
        compared += search_some(rng, coding, pooling)


@pytest.mark.parametrize("data", ["grid", "trained", "unit"])
@pytest.mark.parametrize("widths", [(16, 32), (32, 64), (64, 128)])
def test_no_bound_by_single_pairs_is_below_the_score(data: str, widths: tuple[int, int]) -> None:
    """Each row is found where its own score is the least that counts, and the vectors are those that reach it."""
    rng = np.random.default_rng(2)
    count, dim = 300, 200
    # six vectors of a row are so near that high digits cannot tell them apart
    vectors = np.repeat(vectors_of(rng, data, count, dim), 6, axis=0)
    vectors += np.float32(0.1) * vectors_of(rng, data, 6 * count, dim)
    rows = np.split(np.rint(vectors) if data == "grid" else vectors, count)
    query = vectors_of(rng, "unit", 2, dim)
    plan = plan_for(np.concatenate(rows), query, 2, widths)
    gallery = GalleryRows([part_of(rows, plan)], "images", AlignmentConfig("VHA", "Sum", 0.1, 0.1))
    true = truth(gallery, query)
    scores = np.array([row.score for row in true])
    for name in core.features():
        search = CompiledSearch(gallery, plan, THREADS, name)
        found = search.rank_listed([query] * count, 1, list(np.arange(count)[:, None]), scores)
        for row, ranking in enumerate(found):
            check(ranking, true, 1, np.arange(count) == row, scores[row])


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("coding", "pooling"), EACH)
def test_answers_of_200_000_queries_are_those_of_exhaustive_scoring(coding: str, pooling: str, seed: int) -> None:
    rng = np.random.default_rng(1400 + seed)
    compared = 0
    while compared < 4000:
        compared += search_some(rng, coding, pooling)
