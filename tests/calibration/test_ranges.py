"""Histograms and ranges: order does not matter, each method clips as it says, bad samples are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chan_rt.calibration.ranges import LEVELS, METHODS, Histogram, choose_range
from chan_rt.runtime.errors import InputError


def histogram_of(*batches: np.ndarray) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add("x", batch)
    return histogram


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_counts_do_not_depend_on_the_order_of_batches(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    batches = [rng.standard_normal(100) * scale * factor for factor in (0.01, 1, 10)]
    forward, backward = histogram_of(*batches), histogram_of(*reversed(batches))
    assert forward.limit == backward.limit
    assert (forward.counts == backward.counts).all()
    assert forward.total == 300


def test_state_round_trip_continues_the_count() -> None:
    first, second = np.linspace(-1, 1, 50), np.linspace(-9, 3, 70)
    resumed = Histogram.from_state(histogram_of(first).state())
    resumed.add("x", second)
    whole = histogram_of(first, second)
    assert (resumed.counts == whole.counts).all()
    assert (resumed.limit, resumed.minimum, resumed.maximum) == (whole.limit, whole.minimum, whole.maximum)


def rounding_error(values: np.ndarray, threshold: float) -> float:
    step = threshold / LEVELS
    return float(((np.clip(np.rint(values / step), -LEVELS, LEVELS) * step - values) ** 2).mean())


def test_methods_on_a_normal_with_outliers() -> None:
    values = np.random.default_rng(0).standard_normal(200_000)
    values[:3] = [40, -50, 60]
    ranges = {method: choose_range("x", histogram_of(values), method) for method in METHODS}
    assert ranges["minmax"].amax == 60
    assert ranges["minmax"].clipped == 0
    assert ranges["percentile"].amax == pytest.approx(np.percentile(np.abs(values), 99.99), rel=0.02)
    assert 3 < ranges["entropy"].amax < 20
    # mse's threshold is the best of a fine sweep on the values themselves, to within the histogram's resolution
    best = min(rounding_error(values, threshold) for threshold in np.linspace(2, 60, 300))
    assert rounding_error(values, ranges["mse"].amax) == pytest.approx(best, rel=0.02)
    for name in ("percentile", "entropy", "mse"):
        assert ranges[name].clipped == pytest.approx((np.abs(values) > ranges[name].amax).mean(), abs=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_one_sided_values_keep_their_own_low_end(method: str) -> None:
    found = choose_range("x", histogram_of(np.random.default_rng(1).uniform(0.5, 4, 10_000)), method)
    assert found.low == pytest.approx(0.5, abs=0.01)
    assert found.high <= found.maximum <= 4


@pytest.mark.parametrize(
    ("batches", "message"),
    [([], "no value of x"), ([np.zeros(0)], "no value of x"), ([np.zeros(9)], "only zeros in x")],
)
def test_degenerate_samples_are_refused(batches: list[np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_range("x", histogram_of(*batches), "mse")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-35, 1e-9, 1e-6, 2e-4])
def test_values_below_the_resolution_of_the_bins_are_not_clipped(method: str, scale: float) -> None:
    values = np.linspace(-1, 1, 1001) * scale
    found = choose_range("x", histogram_of(values), method)
    assert (found.low, found.high, found.clipped) == (-scale, scale, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(InputError, match="x: every calibration value must be finite"):
        histogram_of(np.array([1.0, bad]))


def test_unknown_method_is_refused() -> None:
    with pytest.raises(InputError, match="method must be one of minmax"):
        choose_range("x", histogram_of(np.ones(3)), "guess")  # type: ignore[arg-type]
