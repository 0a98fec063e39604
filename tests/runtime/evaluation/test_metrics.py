"""Ranks and recalls: the published values, ties by every order, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chan_rt.runtime.errors import InputError, TensorError
from chan_rt.runtime.evaluation import metrics

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "metrics.npz")


@pytest.mark.parametrize("ties", ["lower", "published"])
def test_published_ranks_and_recalls(ties: metrics.Ties) -> None:
    scores, owner = GOLDEN["sims"], np.arange(100) // 5
    i2t, t2i = metrics.ranks(scores, owner, ties)
    np.testing.assert_array_equal(i2t, GOLDEN["i2t_ranks"])
    np.testing.assert_array_equal(t2i, GOLDEN["t2i_ranks"])
    result = metrics.evaluate(scores, owner, ties)
    for direction in ("i2t", "t2i"):
        found = getattr(result, direction)
        np.testing.assert_array_equal([found.r1, found.r5, found.r10, found.medr, found.meanr], GOLDEN[direction])
    assert result.rsum == pytest.approx(sum(GOLDEN["i2t"][:3]) + sum(GOLDEN["t2i"][:3]))


def _slow_ranks(scores: np.ndarray, owner: np.ndarray, ties: str) -> tuple[list[int], list[int]]:
    """The definition, one query at a time: sort with the tie order spelled out, then look for the right answer."""

    def rank(row: np.ndarray, right: np.ndarray) -> int:
        tie_break = {
            "lower": np.arange(len(row)),
            "published": -np.arange(len(row)),
            "optimistic": ~right,
            "pessimistic": right,
        }[ties]
        order = np.lexsort((tie_break, -row))
        return int(np.flatnonzero(right[order])[0])

    images = [rank(scores[i], owner == i) for i in range(len(scores))]
    return images, [rank(scores[:, c], np.arange(len(scores)) == owner[c]) for c in range(len(owner))]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 7),
    st.integers(1, 4),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["lower", "published", "optimistic", "pessimistic"]),
)
def test_ranks_are_the_definition_under_many_ties(images: int, per_image: int, seed: int, ties: metrics.Ties) -> None:
    rng = np.random.default_rng(seed)
    owner = rng.permutation(np.repeat(np.arange(images), rng.integers(1, per_image + 1, images)))
    scores = rng.integers(0, 3, (images, len(owner))).astype(np.float32)
    found = metrics.ranks(scores, owner, ties)
    expected = _slow_ranks(scores, owner, ties)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.int64, np.float16, np.float64, ">f4"])
@pytest.mark.parametrize("ties", ["lower", "published", "optimistic", "pessimistic"])
def test_ranks_do_not_depend_on_the_type_of_the_scores(kind: type, ties: metrics.Ties) -> None:
    """Distances are negative scores, and of few bits: an integer has no infinity below them."""
    rng = np.random.default_rng(3)
    owner = np.repeat(np.arange(6), 5)
    scores = -rng.integers(1, 100, (6, 30)).astype(kind)
    found = metrics.ranks(scores, owner, ties)
    expected = _slow_ranks(scores.astype(float), owner, ties)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_scores_that_have_no_order_are_refused() -> None:
    with pytest.raises(TensorError, match="scores: must be a numpy array of real numbers, got complex64"):
        metrics.evaluate(np.ones((1, 1), np.complex64), np.array([0]))
    with pytest.raises(TensorError, match="scores: must be a numpy array of real numbers, got list"):
        metrics.evaluate([[1.0]], np.array([0]))  # type: ignore[arg-type]


def test_every_tie_order_lies_between_the_bounds() -> None:
    owner = np.arange(40) // 5
    scores = np.random.default_rng(0).integers(0, 4, (8, 40)).astype(np.float32)
    low, lower, published, high = (
        np.concatenate(metrics.ranks(scores, owner, ties))
        for ties in ("optimistic", "lower", "published", "pessimistic")
    )
    assert (low <= lower).all()
    assert (low <= published).all()
    assert (lower <= high).all()
    assert (published <= high).all()
    assert (low < high).any()
    assert (lower != published).any()


def test_blocks_do_not_change_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, owner = GOLDEN["sims"], np.arange(100) // 5
    whole = metrics.ranks(scores, owner)
    monkeypatch.setattr(metrics, "_BLOCK_BYTES", 3 * 100 * scores.itemsize)
    np.testing.assert_array_equal(metrics.ranks(scores, owner)[0], whole[0])
    np.testing.assert_array_equal(metrics.ranks(scores, owner)[1], whole[1])


def test_folds_are_consecutive_blocks_averaged() -> None:
    scores, owner = GOLDEN["sims"], np.arange(100) // 5
    blocks = metrics.fold_slices(owner, 20, 5)
    assert blocks[0] == (slice(0, 4), slice(0, 20))
    assert blocks[-1] == (slice(16, 20), slice(80, 100))
    per_fold = [metrics.evaluate(scores[block], owner[block[1]] - block[0].start) for block in blocks]
    mean = metrics.mean_metrics(per_fold)
    assert mean.i2t.r1 == pytest.approx(np.mean([fold.i2t.r1 for fold in per_fold]))
    assert mean.rsum == pytest.approx(np.mean([fold.rsum for fold in per_fold]))
    with pytest.raises(InputError, match="folds must divide the 20 images, got 3"):
        metrics.fold_slices(owner, 20, 3)
    with pytest.raises(InputError, match="order of their images"):
        metrics.fold_slices(owner[::-1].copy(), 20, 5)


def test_median_is_floored_and_counted_from_one() -> None:
    found = metrics.recalls(np.array([0, 1, 4, 9]))
    assert (found.r1, found.r5, found.r10, found.medr, found.meanr) == (25.0, 75.0, 100.0, 3.0, 4.5)


def test_nan_is_an_error_wherever_it_is() -> None:
    for spot in [(0, 0), (19, 99), (3, 50)]:
        scores = GOLDEN["sims"].copy()
        scores[spot] = np.nan
        with pytest.raises(
            TensorError, match=f"scores: must not be NaN, got NaN at image {spot[0]}, caption {spot[1]}"
        ):
            metrics.evaluate(scores, np.arange(100) // 5)


@pytest.mark.parametrize(
    ("owner", "message"),
    [
        (np.arange(4), "one image row for each of the 5 captions"),
        (np.array([0.0, 0, 0, 1, 1]), "one image row for each"),
        (np.array([0, 0, 0, 1, 2]), "must lie in 0 to 1"),
        (np.array([0, 0, 0, 1, 10**15]), "must lie in 0 to 1, got 0 to 1000000000000000"),
        (np.array([0, 0, 0, 1, 2**64 - 1], np.uint64), "must lie in 0 to 1, got 0 to 18446744073709551615"),
        (np.ma.array([0, 0, 0, 1, 1], mask=[0, 0, 0, 0, 1]), "must not be masked"),
        (np.array([0, 0, 0, 1, -1]), "must lie in 0 to 1"),
        (np.zeros(5, np.int64), "none for image 1"),
    ],
)
def test_owners_that_do_not_fit_are_refused(owner: np.ndarray, message: str) -> None:
    with pytest.raises(TensorError, match=message):
        metrics.evaluate(np.zeros((2, 5)), owner)


def test_empty_scores_and_unknown_ties_are_refused() -> None:
    with pytest.raises(TensorError, match="neither empty"):
        metrics.evaluate(np.zeros((0, 5)), np.zeros(5, np.int64))
    with pytest.raises(InputError, match="ties must be one of"):
        metrics.evaluate(np.zeros((1, 1)), np.zeros(1, np.int64), "first")  # type: ignore[arg-type]
