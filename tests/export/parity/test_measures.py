"""The measures against plain formulas and against what they must notice."""

import numpy as np
import pytest

from chan_rt.export.parity.measures import (
    MEASURES,
    ChoiceMeter,
    ErrorMeter,
    compare_ranks,
    compare_recalls,
    compare_scores,
    kendall,
    misses,
)
from chan_rt.runtime.errors import ParityError
from chan_rt.runtime.evaluation.metrics import Metrics, Recalls


def test_errors_over_blocks_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((900, 16))
    candidate = reference + rng.standard_normal((900, 16)) * 10.0 ** rng.integers(-9, -2, (900, 1))
    meter = ErrorMeter("x")
    for start in range(0, 900, 250):
        meter.add(reference[start : start + 250], candidate[start : start + 250])
    found = meter.measures()
    error = np.abs(reference - candidate)
    cosine = (reference * candidate).sum(1) / np.linalg.norm(reference, axis=1) / np.linalg.norm(candidate, axis=1)
    assert found["max_abs"] == error.max()
    exact = np.quantile(error, 0.999, method="higher")
    assert exact <= found["p999_abs"] <= 1.048 * exact
    assert found["cosine_min"] == pytest.approx(cosine.min(), abs=1e-12)
    assert found["cosine_mean"] == pytest.approx(cosine.mean(), abs=1e-12)
    assert sum(share for _, share in meter.histogram()) == pytest.approx(1)


def test_equal_arrays_have_no_error():
    rows = np.zeros((3, 4), np.float32)
    meter = ErrorMeter("x")
    meter.add(rows, rows)
    assert meter.measures() == {
        "nonfinite": 0, "padding": 0, "max_abs": 0, "p999_abs": 0, "cosine_min": 1, "cosine_mean": 1,
    }  # fmt: skip


def test_nan_and_inf_are_counted_and_the_rest_still_measured():
    reference = np.ones((2, 3), np.float32)
    meter = ErrorMeter("x")
    meter.add(reference, np.array([[1, np.nan, np.inf], [1, 1, 1.5]], np.float32))
    assert meter.measures()["nonfinite"] == 2
    assert meter.measures()["max_abs"] == 0.5


def test_values_in_the_padding_are_counted_also_when_they_are_nan():
    meter = ErrorMeter("x")
    candidate = np.ones((2, 3, 2), np.float32)
    candidate[1, 2] = np.nan
    meter.add_padded(np.ones((2, 3, 2), np.float32), candidate, np.array([3, 1], np.int32))
    assert meter.measures()["padding"] == 4
    assert meter.measures()["nonfinite"] == 0


def test_what_cannot_be_compared_is_an_error():
    meter = ErrorMeter("scores")
    with pytest.raises(ParityError, match=r"scores: shape must be \[2, 3\], got \[3, 2\]"):
        meter.add(np.ones((2, 3)), np.ones((3, 2)))
    with pytest.raises(ParityError, match="the reference itself holds NaN"):
        meter.add(np.full((2, 3), np.nan), np.ones((2, 3)))
    with pytest.raises(ParityError, match="nothing to compare"):
        meter.measures()
    with pytest.raises(ParityError, match=r"word_regions: shape must be \[1, 1, 2\] .* got \[1, 2, 1\]"):
        ChoiceMeter().add(np.zeros((1, 1, 2), int), np.zeros((1, 2, 1), int), np.ones((1, 1, 2)))


def test_only_clear_choices_must_agree():
    meter = ChoiceMeter()
    reference = np.array([[[0, 1, 2, -1]]])
    meter.add(reference, np.array([[[0, 5, 2, 3]]]), np.array([[[1.0, 1e-6, 1.0, 0.0]]]))
    assert meter.measures() == {
        "same_region": pytest.approx(100 * 2 / 3),
        "same_region_clear": 100,
        "regions_beyond": 1,
    }


def test_kendall_is_the_share_of_ordered_pairs():
    rng = np.random.default_rng(1)
    a = rng.integers(0, 6, (5, 12)).astype(float)
    b = rng.integers(0, 6, (5, 12)).astype(float)
    for row, tau in enumerate(kendall(a, b)):
        concordant = only_a = only_b = 0
        for i in range(12):
            for j in range(i):
                x, y = np.sign(a[row, i] - a[row, j]), np.sign(b[row, i] - b[row, j])
                concordant += x * y
                only_a += x != 0
                only_b += y != 0
        assert tau == pytest.approx(concordant / np.sqrt(only_a * only_b))
    assert kendall(np.array([[1.0, 1.0]]), np.array([[2.0, 2.0]])) == [1]
    assert kendall(np.array([[1.0, 2.0]]), np.array([[2.0, 2.0]])) == [0]


def test_a_swap_within_a_tie_moves_no_list_and_a_larger_one_does():
    scores = np.linspace(5, 0, 40)[None].repeat(3, 0)
    close = scores.copy()
    close[:, 1] = close[:, 0] - 5e-5
    swapped = close.copy()
    swapped[:, [0, 1]] = swapped[:, [1, 0]]
    found = compare_ranks(close, swapped)
    assert found["top1_i2t"] == 0
    assert found["overlap10_i2t"] == 100
    assert found["moved10"] == 0
    swapped = scores.copy()
    swapped[:, [3, 4]] = swapped[:, [4, 3]]
    assert compare_ranks(scores, swapped)["moved10"] == 3


def test_scores_with_nan_have_errors_but_no_ranking():
    rng = np.random.default_rng(2)
    reference = rng.standard_normal((4, 20)).astype(np.float32)
    owner = np.repeat(np.arange(4), 5)
    found, _, recalls = compare_scores(reference, reference, owner)
    assert found["rsum_change"] == found["recall_change"] == found["max_abs"] == 0
    assert found["kendall_t2i"] == 1
    assert recalls is not None
    broken = reference.copy()
    broken[2, 3] = np.nan
    found, _, recalls = compare_scores(reference, broken, owner)
    assert recalls is None
    assert found["nonfinite"] == 1
    assert misses(found, {"nonfinite": 0, "top1_i2t": 99}) == [
        "nonfinite is 1, more than 0",
        "top1_i2t could not be measured",
    ]


def test_bounds_hold_in_the_direction_of_their_measure():
    assert MEASURES["max_abs"].good == "low"
    assert misses({"max_abs": 1e-5, "cosine_min": 1.0}, {"max_abs": 1e-5, "cosine_min": 1.0}) == []
    assert misses({"max_abs": 2e-5}, {"max_abs": 1e-5}) == ["max_abs is 2e-05, more than 1e-05"]
    assert misses({"cosine_min": 0.9}, {"cosine_min": 0.99}) == ["cosine_min is 0.9, less than 0.99"]
    assert misses({"max_abs": float("nan")}, {"max_abs": 1e-5}) == ["max_abs is nan, more than 1e-05"]


def test_a_change_of_one_point_is_not_more_than_one():
    """Of 500 captions each is 0.2 points, and their percentages are no exact float64 numbers."""
    for first in range(500):
        recalls = [100 * (first + more) / 500 for more in (0, 5)]
        reference, candidate = (Metrics(Recalls(r, 0, 0, 1, 1), Recalls(33.3, 0.1, 0.2, 1, 1)) for r in recalls)
        assert compare_recalls(reference, candidate) == {"recall_change": 1, "rsum_change": 1}
        assert compare_recalls(candidate, reference) == {"recall_change": 1, "rsum_change": 1}
