from __future__ import annotations

import numpy as np
import pytest

from chan_rt.runtime import halves
from chan_rt.runtime.gallery.compiled import open_core
from chan_rt.runtime.halves import as_dtype, as_float32

EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
SHAPES = [(1 << 16,), (2, 4, 1 << 13), (0,), (3,), (7, 5)]


@pytest.fixture(params=["compiled", "numpy"], autouse=True)
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_core() is not None
    if request.param == "numpy":
        monkeypatch.setattr(halves, "open_core", lambda: None)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_half_becomes_its_float(shape: tuple[int, ...]) -> None:
    array = EVERY[: np.prod(shape)].reshape(shape)
    found = as_float32(array)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, array.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(found), np.signbit(array))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_float_becomes_the_nearest_half(shape: tuple[int, ...]) -> None:
    """Every half itself, what lies in the middle of two, the floats beside these, and floats of every size."""
    exact = EVERY[np.isfinite(EVERY)].astype(np.float32)
    with np.errstate(all="ignore"):
        middle = (exact + np.nextafter(EVERY[np.isfinite(EVERY)], np.float16(np.inf)).astype(np.float32)) / 2
        beside = [np.nextafter(middle, np.float32(to)) for to in (-np.inf, np.inf)]
    sizes = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, np.uint32).view(np.float32)
    special = np.array([65519.99, 65520, -65520, np.inf, -np.inf, np.nan, 2**-25, 2**-24, -(2**-149)], np.float32)
    values = np.concatenate([special, exact, middle, *beside, sizes])
    many = np.tile(values, 1 + np.prod(shape) // len(values))[: np.prod(shape)].reshape(shape)
    for given in (values, many):
        with np.errstate(all="ignore"):
            found, expected = as_dtype(given, "float16"), given.astype(np.float16)
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


def test_strides_and_other_types_are_left_to_numpy() -> None:
    array = EVERY.reshape(256, 256)
    np.testing.assert_array_equal(as_float32(array[:, ::3]), array[:, ::3].astype(np.float32))
    floats = np.ones((3, 4), np.float32)
    assert as_float32(floats) is floats
    assert as_dtype(floats, "float32") is floats
    np.testing.assert_array_equal(as_dtype(floats[:, ::2], "float16"), np.ones((3, 2), np.float16))


def test_the_core_refuses_an_array_that_is_too_short() -> None:
    core = open_core()
    assert core is not None
    with pytest.raises(ValueError, match="out must have 12 bytes, got 8"):
        core.widen(np.zeros(3, np.float16), np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="half must have 6 bytes, got 4"):
        core.narrow(np.zeros(3, np.float32), np.zeros(2, np.float16))
