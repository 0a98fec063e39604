"""The certified top k against brute force in float64, over galleries made to break it."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.errors import TensorError
from chan_rt.runtime.gallery import rank as rank_module
from chan_rt.runtime.gallery.estimate import CpuEstimator
from chan_rt.runtime.gallery.kernels.choose import open_kernel
from chan_rt.runtime.gallery.kernels.pool import Pool
from chan_rt.runtime.gallery.proof.certify import Ranking
from chan_rt.runtime.gallery.proof.gallery_rows import GalleryRows
from chan_rt.runtime.gallery.proof.prefix import SearchPlan, fit_axes
from chan_rt.runtime.gallery.proof.rows import array_part, pack_rows
from chan_rt.runtime.gallery.proof.true_score import true_row
from chan_rt.runtime.gallery.rank import Ranker

CODINGS = ("VHA", "THA", "VSA")
POOLINGS = ("Max", "Mean", "Sum", "LSE", "Softmax")
POOL = Pool(2)


def brute_force(rows: list[np.ndarray], query: np.ndarray, kind: str, alignment: AlignmentConfig) -> np.ndarray:
    """Scores as docs/published-model.md defines them, written out again in float64: [N]."""
    scores = []
    for row in rows:
        regions, words = (row, query) if kind == "images" else (query, row)
        regions, words = regions.astype(np.float64), words.astype(np.float64)
        similarities = regions @ words.T
        if alignment.coding == "VHA":
            coding = similarities.max(axis=0)
        elif alignment.coding == "THA":
            coding = similarities.max(axis=1)
        else:
            weights = np.exp((similarities - similarities.max(axis=1, keepdims=True)) / alignment.attention_temperature)
            attended = (weights / weights.sum(axis=1, keepdims=True)) @ words
            coding = (regions * attended).sum(axis=1) / (np.linalg.norm(attended, axis=1) + 1e-8)
        t = alignment.pooling_temperature
        weights = np.exp((coding - coding.max()) / t)
        scores.append(
            {
                "Max": coding.max(),
                "Mean": coding.mean(),
                "Sum": coding.sum(),
                "LSE": np.log(weights.sum()) + coding.max() / t,
                "Softmax": (weights * coding).sum() / weights.sum(),
            }[alignment.pooling]
        )
    return np.array(scores)


def ranker(
    rows: list[np.ndarray], kind: str, alignment: AlignmentConfig, cuts=(), kernel="auto", planes=2, **options
) -> Ranker:
    """A ranker over rows in as many parts as there are cuts, plus one."""
    edges = [0, *sorted(cuts), len(rows)]
    parts = []
    for first, last in itertools.pairwise(edges):
        starts = np.cumsum([0] + [len(row) for row in rows[first:last]]).astype(np.int64)
        parts.append(array_part(np.concatenate([*rows[first:last], rows[0][:0]]), starts, **options))
    gallery, opened = GalleryRows(parts, kind, alignment), open_kernel(kernel)
    return Ranker(gallery, CpuEstimator(gallery, opened, POOL, planes), opened, POOL)


def check(ranking: Ranking, truth: np.ndarray, k: int, allowed: np.ndarray) -> None:
    """The ranking is that of brute force, but for scores float64 cannot tell apart."""
    rows = np.flatnonzero(allowed)
    tolerance = 1e-11 * (1 + np.abs(truth).max())
    expected = rows[np.lexsort((rows, -truth[rows]))][:k]
    assert len(ranking.rows) == len(expected)
    assert len(set(ranking.rows.tolist())) == len(expected)
    assert allowed[ranking.rows].all()
    np.testing.assert_allclose(ranking.scores, truth[ranking.rows], rtol=0, atol=tolerance)
    np.testing.assert_allclose(truth[ranking.rows], truth[expected], rtol=0, atol=tolerance)
    assert (np.diff(ranking.scores) <= 0).all()
    for a, b in itertools.pairwise(range(len(ranking.rows))):
        if ranking.scores[a] == ranking.scores[b]:
            assert ranking.rows[a] < ranking.rows[b]


@st.composite
def galleries(draw):
    """Rows and a query: random, tied, duplicated, nearly duplicated, zero, tiny, huge, short and long."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dim = draw(st.sampled_from([1, 3, 16, 70, 256]))
    count = draw(st.integers(1, 40))
    longest = draw(st.sampled_from([1, 2, 12, 13, 36, 100]))
    words = draw(st.sampled_from([1, 2, 12, 17, 60]))
    even = draw(st.booleans())
    lengths = np.full(count, longest) if even else rng.integers(1, longest + 1, count)
    rows = [rng.standard_normal((length, dim)).astype(np.float32) for length in lengths]
    query = rng.standard_normal((words, dim)).astype(np.float32)
    match draw(
        st.sampled_from(["unit", "raw", "ties", "duplicates", "near", "zero", "tiny", "huge", "mixed", "sparse"])
    ):
        case "unit":
            rows = [row / np.linalg.norm(row, axis=1, keepdims=True) for row in rows]
            query /= np.linalg.norm(query, axis=1, keepdims=True)
        case "ties":
            rows = [np.sign(row) for row in rows]
            query = np.sign(query)
        case "duplicates":
            rows = [rows[i % 3].copy() for i in range(count)]
        case "near":
            rows = [rows[0] + np.float32(1e-6) * rng.standard_normal(rows[0].shape).astype(np.float32) for _ in rows]
        case "zero":
            rows = [row * (i % 2) for i, row in enumerate(rows)]
        case "tiny":
            rows = [row * np.float32(10.0 ** rng.integers(-44, -20)) for row in rows]
        case "huge":
            rows = [row * np.float32(10.0 ** rng.integers(0, 14)) for row in rows]
        case "mixed":
            rows = [row * np.float32(10.0) ** rng.integers(-6, 3, (len(row), 1)).astype(np.float32) for row in rows]
        case "sparse":
            rows = [np.where(rng.random(row.shape) < 0.05, row, 0).astype(np.float32) for row in rows]
    k = draw(st.sampled_from([1, 2, 5, count, count + 3]))
    cuts = draw(st.lists(st.integers(0, count), max_size=2))
    allowed = rng.random(count) < draw(st.sampled_from([1.1, 0.6, 0.05]))
    return rows, query, k, cuts, allowed


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("coding", CODINGS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(case=galleries(), kind=st.sampled_from(["images", "captions"]), temperature=st.sampled_from([0.1, 1.0, 0.02]))
def test_exact_is_brute_force(case, kind: str, coding: str, pooling: str, temperature: float) -> None:
    rows, query, k, cuts, allowed = case
    alignment = AlignmentConfig(coding, pooling, 0.1, temperature)
    (ranking,) = ranker(rows, kind, alignment, cuts).exact([query], k, allowed)
    assert ranking.certified
    check(ranking, brute_force(rows, query, kind, alignment), k, allowed)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("coding", ["VHA", "THA"])
@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=galleries(), kind=st.sampled_from(["images", "captions"]), prepared=st.booleans(), many=st.booleans())
def test_queries_of_one_plane_are_ranked_as_by_brute_force(case, kind, coding, pooling, prepared, many) -> None:
    rows, query, k, cuts, allowed = case
    alignment = AlignmentConfig(coding, pooling)
    fitted = {"plan": SearchPlan(fit_axes(np.concatenate(rows), query), None, None, 1)} if prepared else {}
    queries = [query, query[::-1]] * (70 // len(query) if many else 1)
    rankings = ranker(rows, kind, alignment, cuts, planes=1, **fitted).exact(queries, k, allowed)
    for ranking in (rankings[0], rankings[-2]):
        assert ranking.certified
        check(ranking, brute_force(rows, query, kind, alignment), k, allowed)


@pytest.mark.parametrize("coding", ["VHA", "THA"])
def test_rows_that_float32_cannot_tell_apart_are_ranked_by_float64(coding: str) -> None:
    """200 rows a unit in the last place from one another: float32 products order them by their own rounding."""
    rng = np.random.default_rng(3)
    base = rng.standard_normal((4, 256)).astype(np.float32)
    rows = [np.nextafter(base, base + rng.choice([-1, 0, 1], base.shape).astype(np.float32)) for _ in range(200)]
    alignment = AlignmentConfig(coding, "Mean")
    everything = np.ones(200, bool)
    for seed in range(10):
        query = np.random.default_rng(seed).standard_normal((3, 256)).astype(np.float32)
        (ranking,) = ranker(rows, "images", alignment).exact([query], 5, everything)
        truth = brute_force(rows, query, "images", alignment)
        np.testing.assert_allclose(truth[ranking.rows], np.sort(truth)[::-1][:5], rtol=0, atol=1e-12)


def test_equal_rows_tie_wherever_they_stand() -> None:
    """Equal scores are equal to the bit, whatever block, part or length of row they were computed in."""
    rng = np.random.default_rng(4)
    best = rng.standard_normal((1, 70)).astype(np.float32)
    rows = [best if i % 3 else np.concatenate([best, best * 0, best]) for i in range(60)]
    for count in (1, 12, 17):
        query = best + np.float32(0.01) * rng.standard_normal((count, 70)).astype(np.float32)
        (ranking,) = ranker(rows, "images", AlignmentConfig(), [7, 30]).exact([query], 60, np.ones(60, bool))
        assert ranking.rows.tolist() == list(range(60))
        assert len(set(ranking.scores.tolist())) == 1


def exhaustive(rows: list[np.ndarray], query: np.ndarray, alignment: AlignmentConfig) -> tuple[list[int], list[float]]:
    """All rows of images by falling true score, ties by lower row, and the scores, to the bit."""
    scores = np.array([true_row(row, query, "images", alignment).score for row in rows])
    order = np.lexsort((np.arange(len(rows)), -scores))
    return order.tolist(), scores[order].tolist()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("coding", ["VHA", "THA"])
@pytest.mark.parametrize("near", [True, False])
@pytest.mark.parametrize("size", [1.0, 2.0**-25, 2.0**-27, 2.0**-29])
def test_rankings_are_those_of_exhaustive_scoring_to_the_bit(
    coding: str, pooling: str, size: float, near: bool
) -> None:
    """Vectors a unit in the last place apart, within a row and between rows, or down to where only rounding is left."""
    rng = np.random.default_rng(10)
    base = rng.standard_normal((1, 256)).astype(np.float32)
    rows = rng.standard_normal((80, 37, 256)).astype(np.float32)
    query = rng.standard_normal((23, 256)).astype(np.float32)
    if near:
        rows, query = (np.nextafter(base, base + np.sign(np.round(others))) for others in (rows, query))
    rows, query = list(rows * np.float32(size)), query * np.float32(size)
    alignment = AlignmentConfig(coding, pooling)
    order, scores = exhaustive(rows, query, alignment)
    for k in (1, 7):
        (found,) = ranker(rows, "images", alignment, [30]).exact([query], k, np.ones(80, bool))
        assert found.rows.tolist() == order[:k]
        assert found.scores.tolist() == scores[:k]
        for row, detail in zip(found.rows, found.details, strict=True):
            expected = true_row(rows[row], query, "images", alignment)
            assert detail.winners.tolist() == expected.winners.tolist()
            assert detail.maxima.tolist() == expected.maxima.tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2e15])
def test_values_no_proof_covers_are_named_with_their_row(value: float) -> None:
    vectors = np.zeros((4, 3, 8), np.float32)
    vectors[0, 2, 5] = np.nan  # padding
    vectors[2, 1, 7] = value
    message = f"queries: values must be finite and at most 1e+15 in size, got {np.float32(value)} in row 2"
    with pytest.raises(TensorError, match=re.escape(message)):
        pack_rows(vectors, np.array([2, 3, 2, 1]), "queries")
    vectors[2, 1, 7] = 1e15
    packed, starts = pack_rows(vectors, np.array([2, 3, 2, 1]), "queries")
    assert starts.tolist() == [0, 2, 5, 7, 8]
    assert packed[6, 7] == np.float32(1e15)


def test_without_a_fine_copy_two_planes_are_scanned() -> None:
    """Nothing is rescored there, so the codes' scores are the answer."""
    rng = np.random.default_rng(12)
    rows = [rng.standard_normal((2, 64)).astype(np.float32) for _ in range(50)]
    one, two = (
        ranker(rows, "images", AlignmentConfig(), planes=planes, precision="none").exact(
            [rows[0]], 9, np.ones(50, bool)
        )
        for planes in (1, 2)
    )
    assert one[0].scores.tolist() == two[0].scores.tolist()


@pytest.mark.parametrize("kind", ["images", "captions"])
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_without_a_fine_copy_scores_are_those_of_what_the_codes_stand_for(kind, coding, pooling) -> None:
    """Vectors of whole numbers up to 127 are coded without a loss, so the scores of codes are the true ones."""
    rng = np.random.default_rng(14)
    rows = [rng.integers(-20, 21, (length, 24)).astype(np.float32) for length in rng.integers(1, 6, 40)]
    for row in rows:
        row[0, 0] = 127
    query = rng.integers(-20, 21, (4, 24)).astype(np.float32)
    query[:, 0] = 127
    alignment = AlignmentConfig(coding, pooling, attention_temperature=300, pooling_temperature=300)
    searched = ranker(rows, kind, alignment, cuts=[7, 23], precision="none")
    (found,) = searched.exact([query], 40, np.ones(40, bool))
    expected = brute_force(rows, query, kind, alignment)
    np.testing.assert_allclose(found.scores, expected[found.rows], rtol=1e-6)
    assert not found.certified
    assert (found.rescored, found.details) == (0, None)


def test_estimates_are_made_in_turns_that_fit_the_memory_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_module, "_ESTIMATE_BYTES", 3 * 16 * 50 * POOL.threads)
    rng = np.random.default_rng(13)
    rows = [rng.standard_normal((2, 64)).astype(np.float32) for _ in range(50)]
    searched, turns = ranker(rows, "images", AlignmentConfig()), []
    intervals = searched._estimator.intervals

    def counted(queries: list[np.ndarray], *how: object) -> object:
        turns.append(len(queries))
        return intervals(queries, *how)

    monkeypatch.setattr(searched._estimator, "intervals", counted)
    queries = [rng.standard_normal((7, 64)).astype(np.float32) for _ in range(20)]
    found = searched.exact(queries, 2, np.ones(50, bool))
    assert sum(turns) == 20
    assert max(turns) == 3
    monkeypatch.undo()
    assert [one.rows.tolist() for one in found] == [
        searched.exact([query], 2, np.ones(50, bool))[0].rows.tolist() for query in queries
    ]


def test_a_fine_copy_at_float16_refuses_what_it_cannot_hold() -> None:
    vectors = np.array([[1.0, 65504.0], [2.0, 65520.0]], np.float32)
    assert array_part(vectors[:1], np.array([0, 1]), "float16").exact.dtype == np.float16
    with pytest.raises(TensorError, match="must fit float16, or keep the fine copy"):
        array_part(vectors, np.array([0, 2]), "float16")
