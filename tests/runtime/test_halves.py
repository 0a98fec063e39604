from __future__ import annotations

import numpy as np
import pytest

from chan_rt.runtime import halves
from chan_rt.runtime.gallery.compiled import open_core
from chan_rt.runtime.halves import as_float32

EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("shape", [(-1,), (2, 4, -1), (0,), (3,), (7, 5)])
def test_every_half_becomes_its_float(shape: tuple[int, ...], compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled:
        assert open_core() is not None
    else:
        monkeypatch.setattr(halves, "open_core", lambda: None)
    array = EVERY[: abs(int(np.prod(shape)))] if -1 not in shape else EVERY
    array = array.reshape(shape)
    found = as_float32(array)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, array.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(found), np.signbit(array))


def test_strides_and_other_types_are_converted_by_numpy() -> None:
    array = EVERY.reshape(256, 256)
    np.testing.assert_array_equal(as_float32(array[:, ::3]), array[:, ::3].astype(np.float32))
    floats = np.ones(3, np.float32)
    assert as_float32(floats) is floats


def test_the_core_refuses_an_array_that_is_too_short() -> None:
    core = open_core()
    assert core is not None
    with pytest.raises(ValueError, match="out must have 12 bytes, got 8"):
        core.widen(np.zeros(3, np.float16), np.zeros(2, np.float32))
